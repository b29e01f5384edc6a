"""bench/peers/models.py: the models, optimizers and made-up data of models.c, in PyTorch; 1.13 will do."""
import math
import os
import sys
import time

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional as F

BATCH = {"mlp": 64, "cnn": 64, "resnet": 32, "gpt": 4, "gpt2": 1}
TOKENS = {"gpt": (256, 256), "gpt2": (256, 50257)}              # of a row, kinds


def mlp():
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(inplace=True), nn.Linear(1024, 1024), nn.ReLU(inplace=True), nn.Linear(1024, 10))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(inplace=True), nn.Conv2d(32, 64, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.25),
                         nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(128, 10))


class Residual(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        for i, (n_in, n_out) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512))):
            setattr(self, f"layer{i + 1}", nn.Sequential(Residual(n_in, n_out, 1 + (i > 0)), Residual(n_out, n_out, 1)))
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, heads, width):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attention(self, x):
        n, t, width = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, 2))
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:                                                    # 1.13
            scores = q @ k.transpose(2, 3) / math.sqrt(width // self.heads)
            hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = scores.masked_fill(hidden, -math.inf).softmax(3) @ v
        return self.attn_proj(y.transpose(1, 2).reshape(n, t, width))

    def forward(self, x):
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Returns logits of (rows * tokens, vocab); the head is the token table."""

    def __init__(self, layers, heads, width, context, vocab):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.02)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight).view(-1, self.wte.weight.shape[0])


BUILD = {"mlp": mlp, "cnn": cnn, "resnet": ResNet18, "gpt": lambda: GPT(6, 6, 384, 256, 256), "gpt2": lambda: GPT(12, 12, 768, 1024, 50257)}


def read_weights(net, path):
    """Our file. GPT's has Hugging Face's names, and matrices as (in, out)."""
    from safetensors.torch import load_file

    given = load_file(path)
    if not isinstance(net, GPT):
        missing, unknown = net.load_state_dict(given, strict=False)
        if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
            raise SystemExit(f"{path}: not the weights of this model: missing {missing}, unknown {unknown}")
        return
    names = {"attn_proj": "attn.c_proj", "c_attn": "attn.c_attn", "c_fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}
    with torch.no_grad():
        for name, p in net.named_parameters():
            part = name.split(".")
            value = given[".".join(names.get(x, x) for x in part)]
            p.copy_(value.t() if p.dim() == 2 and part[-2] in names else value)


def batch(model, first):
    """Rows first, first + 1, …"""
    row = np.arange(first, first + BATCH[model], dtype=np.uint64)[:, None]
    if model in TOKENS:
        tokens, vocab = TOKENS[model]
        mask = np.uint64(0xFFFFFFFF)
        h = (row * np.uint64(1000003) + np.arange(tokens + 1, dtype=np.uint64) * np.uint64(7919)) & mask
        h = ((h * np.uint64(2654435761)) & mask) >> np.uint64(8)
        ids = torch.from_numpy((h % np.uint64(vocab)).astype(np.int64))
        return ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)
    x = ((row * np.uint64(31) + np.arange(784, dtype=np.uint64) * np.uint64(17)) % np.uint64(251)).astype(np.float32) / np.float32(251)
    x = torch.from_numpy(x)
    return x if model == "mlp" else x.view(-1, 1, 28, 28), torch.from_numpy((row[:, 0] % np.uint64(10)).astype(np.int64))


def optimizer(model, net, words):
    how = {"fused": True} if "fused" in words else {"foreach": "foreach" in words}
    if model in TOKENS:
        return torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=0.01, **how)
    return torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, **how)


def leave():
    """All ranks at once, without gloo's destructors, which now and then abort."""
    sys.stdout.flush()
    distributed.barrier()
    time.sleep(0.2)
    os._exit(0)
