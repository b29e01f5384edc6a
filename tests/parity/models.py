"""tests/parity/models.py: the models of models.c in PyTorch, and the same Philox numbers (Salmon et al., SC'11)."""
import math

import numpy as np
import torch
from torch import nn

SEED = 2024


def philox_uniform(n, stream):
    """Element i: the top 24 bits of word i % 4 of Philox 4x32-10 with key SEED and counter (i // 4, stream)."""
    mask = np.uint64(0xFFFFFFFF)
    blocks = np.arange((n + 3) // 4, dtype=np.uint64)
    c = [blocks & mask, blocks >> np.uint64(32), np.full_like(blocks, stream & 0xFFFFFFFF), np.full_like(blocks, stream >> 32)]
    k0, k1 = SEED & 0xFFFFFFFF, SEED >> 32
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = np.stack(c, axis=1).reshape(-1)[:n]
    return (words >> np.uint64(8)).astype(np.float64) / 2.0 ** 24


def stream(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def uniform(shape, name, half_width, dtype):
    u = philox_uniform(math.prod(shape), stream(name))
    return torch.from_numpy((u - 0.5) * (2 * half_width)).reshape(shape).to(dtype)


def ids(shape, name, count):
    return torch.from_numpy(np.floor(philox_uniform(math.prod(shape), stream(name)) * count).astype(np.int64)).reshape(shape)


def plain(name):
    """Tandem's models are the inner ones of Hugging Face's."""
    return name.removeprefix("transformer.").removeprefix("bert.")


def parameters(net):
    return [(plain(n), p) for n, p in net.named_parameters()]


def buffers(net):
    return [(n, b) for n, b in net.named_buffers() if "running_" in n]


def draw_weights(net):
    with torch.no_grad():
        for name, p in parameters(net):
            weight = "weight" in name[max(name.rfind("."), 0):]
            h = 0.125
            if p.dim() >= 2:
                h = 2.0 ** math.floor(math.log2(math.sqrt(3.0 * p.shape[0] / p.numel())))
            u = uniform(p.shape, name, h, torch.float32)
            p.copy_(u + 1 if p.dim() < 2 and weight else u)


class Model:
    """build() -> module; logits(net, batch number, dtype); loss(logits, batch number); rates: factors of learning rates."""

    def __init__(self, build, logits, loss=None, **rates):
        self.build, self.logits, self.rates = build, logits, rates
        self.loss = loss or (lambda y, k: nn.functional.cross_entropy(y, ids((y.shape[0],), f"y/{k}", y.shape[1])))


def mlp():
    return nn.Sequential(nn.Linear(20, 33), nn.GELU(), nn.Linear(33, 17), nn.Tanh(), nn.Linear(17, 5))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, stride=2, bias=False),
                         nn.BatchNorm2d(8), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 10))


class Block(nn.Module):
    """He et al. 2016, the basic block, with torchvision's names."""

    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for i in range(4):
            inside, out = width * 2 ** max(i - 1, 0), width * 2 ** i
            setattr(self, f"layer{i + 1}", nn.Sequential(Block(inside, out, 1 if i == 0 else 2), Block(out, out, 1)))
        self.fc = nn.Linear(width * 8, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


VOCAB, TOKENS = 97, 24


class Recurrent(nn.Module):
    def __init__(self, kind, vocab=VOCAB, width=16, hidden=32, layers=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.rnn = kind(width, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, vocab)

    def forward(self, x):
        return self.head(self.rnn(self.embedding(x))[0]).reshape(-1, self.head.out_features)


def gpt2(vocab=VOCAB, positions=32, width=64, layers=2, heads=4, **more):
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads, resid_pdrop=0.0,
                                      embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, **more))


def bert(vocab=VOCAB, positions=32, width=64, layers=2, heads=4, classes=3):
    from transformers import BertConfig, BertForSequenceClassification
    return BertForSequenceClassification(BertConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
        max_position_embeddings=positions, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=classes))


def bert_logits(net, k, dtype):
    mask = torch.tensor([[int(t < TOKENS - 5 * n) for t in range(TOKENS)] for n in range(4)])
    return net(input_ids=ids((4, TOKENS), f"ids/{k}", VOCAB), token_type_ids=ids((4, TOKENS), f"types/{k}", 2), attention_mask=mask).logits


MODELS = {
    "mlp": Model(mlp, lambda net, k, t: net(uniform((32, 20), f"x/{k}", 2, t))),
    "cnn": Model(cnn, lambda net, k, t: net(uniform((16, 1, 28, 28), f"x/{k}", 2, t))),
    "resnet18": Model(lambda: ResNet18(8), lambda net, k, t: net(uniform((8, 3, 64, 64), f"x/{k}", 2, t)), sgd=2.0 ** -6, adamw=2.0 ** -3, lars=2.0 ** -4),
    "lstm": Model(lambda: Recurrent(nn.LSTM), lambda net, k, t: net(ids((3, TOKENS), f"ids/{k}", VOCAB))),
    "gru": Model(lambda: Recurrent(nn.GRU), lambda net, k, t: net(ids((3, TOKENS), f"ids/{k}", VOCAB))),
    "gpt2": Model(gpt2, lambda net, k, t: net(ids((3, TOKENS), f"ids/{k}", VOCAB)).logits.reshape(-1, VOCAB)),
    "bert": Model(bert, bert_logits),
}
