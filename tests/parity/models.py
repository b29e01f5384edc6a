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


def parameters(net):
    return list(net.named_parameters())


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
    """build() -> module; logits(net, batch number, dtype); loss(logits, batch number)."""

    def __init__(self, build, logits, loss=None):
        self.build, self.logits = build, logits
        self.loss = loss or (lambda y, k: nn.functional.cross_entropy(y, ids((y.shape[0],), f"y/{k}", y.shape[1])))


def mlp():
    return nn.Sequential(nn.Linear(20, 33), nn.GELU(), nn.Linear(33, 17), nn.Tanh(), nn.Linear(17, 5))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, stride=2, bias=False),
                         nn.BatchNorm2d(8), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 10))


MODELS = {
    "mlp": Model(mlp, lambda net, k, t: net(uniform((32, 20), f"x/{k}", 2, t))),
    "cnn": Model(cnn, lambda net, k, t: net(uniform((16, 1, 28, 28), f"x/{k}", 2, t))),
}
