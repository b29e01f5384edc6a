"""bench/peers/rows.py: what is compared: the steps, what is aimed at, PyTorch's settings, and the least that each step has to do.

Operations: a multiplication and an addition are two. Products and convolutions forward, gradients of weights, gradients of inputs but the first
layer's; half of causal attention's; convolutions as they are written (Winograd's need fewer). Nothing element-wise is counted.
Bytes: weights read forward and backward, gradients written, and the optimizer's pass (gradients, moments and weights read, the latter two
written), each once from memory, four bytes a number. Those of a model that stays in the cache cost less than this says.
"""
from dataclasses import dataclass

# PyTorch's settings (peer.py, programs.py): the fastest of those that `bench/peers/run tune ROW WORD…` compared. What decides on a processor of AMD is
# mklintel: PyPI's build carries MKL, which takes its AVX-512 kernels on Intel's processors only unless its question for the vendor is answered for it.
SETTINGS = {
    "mlp": "fused,view,bind,mklintel",
    "cnn": "fused,view,bind,malloc,mklintel",
    "resnet": "fused,view,bind,malloc,mklintel",
    "gpt": "fused,view,bind,malloc,mklintel",
    "gpt2": "fused,malloc,mklintel",
    "gpt2x2": "fused,view,bind,malloc,mklintel",
}
# torch.compile, where it is faster than without: shown beside it, and the faster of the two counts
COMPILED = {name: SETTINGS[name] + ",compile" for name in ("gpt", "gpt2", "gpt2x2")}


@dataclass
class Step:
    title: str
    model: str
    aim: float
    ranks: int
    threads: int
    steps: int
    warm: int
    flops: float                # of a rank
    numbers: float              # weights
    moments: int                # of the optimizer for each weight
    tolerance: float            # of the first losses
    rounds: int = 5

    def bytes(self):
        return 4 * self.numbers * (2 + 1 + 1 + 2 * self.moments + 2)


def mlp():
    layers = [784 * 1024, 1024 * 1024, 1024 * 10]
    return 2 * 64 * (3 * sum(layers) - layers[0]), sum(layers) + 2058


def cnn():
    layers = [26 * 26 * 9 * 32, 24 * 24 * 9 * 32 * 64, 9216 * 128, 1280]
    return 2 * 64 * (3 * sum(layers) - layers[0]), 9 * 32 + 9 * 32 * 64 + 9216 * 128 + 1280 + 32 + 64 + 128 + 10


def resnet():
    macs, weights, first = 28 * 28 * 9 * 64, 9 * 64 + 128, 28 * 28 * 9 * 64
    side, c = 28, 64
    for stage in range(4):
        for block in range(2):
            out = 64 << stage
            side = (side + 1) // 2 if stage and not block else side
            for n_in, n_out, k in ((c, out, 9), (out, out, 9)) + (((c, out, 1),) if c != out else ()):
                macs += side * side * n_in * n_out * k
                weights += n_in * n_out * k + 2 * n_out
            c = out
    return 2 * 32 * (3 * (macs + 5120) - first), weights + 5130


def gpt(layers, width, vocab, context, rows, t):
    blocks = 12 * layers * width * width
    weights = blocks + vocab * width + context * width + layers * 13 * width + 2 * width
    return 6 * rows * t * (blocks + vocab * width) + 6 * layers * width * t * t * rows, weights


BYTE, BIG = gpt(6, 384, 256, 256, 4, 256), gpt(12, 768, 50257, 1024, 1, 256)
STEPS = {
    "mlp": Step("MLP 784-1024-1024-10, batch 64, 2 ranks, SGD", "mlp", 2.0, 2, 1, 80, 10, *mlp(), 1, 2e-4, 7),
    "cnn": Step("CNN (conv 32 and 64 of 3x3, fc 128 and 10, dropout), batch 64, 2 ranks, SGD", "cnn", 1.8, 2, 1, 25, 5, *cnn(), 1, 2e-4),
    "resnet": Step("ResNet-18, 28x28x1, batch 32, 2 ranks, SGD", "resnet", 1.3, 2, 1, 6, 2, *resnet(), 1, 2e-3),
    "gpt": Step("byte GPT, 6 layers, 384 wide, T 256, batch 4, 2 ranks, AdamW", "gpt", 1.15, 2, 1, 6, 2, *BYTE, 2, 2e-3),
    "gpt2": Step("GPT-2 124M, T 256, 1 process of 2 threads, AdamW", "gpt2", 1.7, 1, 2, 4, 2, *BIG, 2, 2e-3, 3),
    "gpt2x2": Step("GPT-2 124M, T 256 a rank, 2 ranks, AdamW", "gpt2", 1.8, 2, 1, 4, 2, *BIG, 2, 2e-3, 3),
}
MEMORY_AIM = {"mlp": "half", "cnn": "half", "resnet": "half", "gpt": "half", "gpt2": "2300 MB", "gpt2x2": "1900 MB"}
