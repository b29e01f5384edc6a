"""PyTorch's side of the benchmarks: the same models, steps and commands as gpt2.c and resnet.c (worker.h), PyTorch at its best settings:
bf16 autocast, torch.compile, fused AdamW, flash attention, channels-last, TF32 where f32 is left.

    peer.py gpt2 [--size 124M] [--batch 16] [--context 1024] [--vocab 50304] [--weights FILE] [--data FILE] [--eager] [--device cuda]
    peer.py resnet [--batch 256] [--size 224] [--eager] [--device cuda]
"""
import argparse
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

SHAPES = {"124M": (12, 12, 768, 1024), "355M": (24, 16, 1024, 1024), "tiny": (2, 1, 64, 64)}      # layers, heads, width, context


class Block(nn.Module):
    def __init__(self, heads, width):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(width, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, layers, heads, width, context, vocab):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, 0.02)

    def forward(self, ids, target):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), target.reshape(-1))

    def read(self, path):
        """Weights by Hugging Face's names; matrices lie as (in, out) there."""
        from safetensors.torch import load_file

        given = load_file(path)
        names = {"attn_proj": "attn.c_proj", "c_attn": "attn.c_attn", "c_fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}
        with torch.no_grad():
            for name, p in self.named_parameters():
                part = name.split(".")
                theirs = ".".join(names.get(x, x) for x in part)
                value = given[theirs]
                p.copy_(value.t() if p.dim() == 2 and part[-2] in names else value)


def gpt2(args, device):
    layers, heads, width, context = SHAPES[args.size or "124M"]
    context = args.context or context
    torch.manual_seed(1)
    net = GPT2(layers, heads, width, context, args.vocab)
    if args.weights:
        net.read(args.weights)
    net.to(device)
    parameters = list(net.parameters())
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    call = net if args.eager else torch.compile(net)
    data, at = None, [0]
    if args.data:
        import numpy
        data = torch.from_numpy(numpy.load(args.data)).to(device)
    fixed = torch.randint(0, args.vocab, (args.batch, context + 1), device=device)
    x, y = fixed[:, :-1].contiguous(), fixed[:, 1:].contiguous()

    def step():
        a, b = x, y
        if data is not None:
            ids = data[at[0] % data.shape[0]]
            a, b = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
            at[0] += 1
        with torch.autocast(device, torch.bfloat16, enabled=not args.f32):
            loss = call(a, b)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        return loss

    return step


def resnet(args, device):
    import torchvision

    torch.manual_seed(1)
    net = torchvision.models.resnet50().to(device).to(memory_format=torch.channels_last)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=device == "cuda")
    call = net if args.eager else torch.compile(net)
    size = int(args.size or 224)
    x = torch.randn(args.batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (args.batch,), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(call(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        return loss

    return step


def serve(step, device):
    cuda = device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, n = line.strip().partition(" ")
        if word == "quit":
            return
        if word == "steps":
            wait()
            since = time.perf_counter()
            for _ in range(int(n)):
                step()
            wait()
            print(f"ms {1e3 * (time.perf_counter() - since):.6f}", flush=True)
        elif word == "losses":
            print("losses", *(f"{step().item():.9g}" for _ in range(int(n))), flush=True)
        elif word == "memory":
            print("bytes", torch.cuda.max_memory_allocated() if cuda else 0, flush=True)
        else:
            print(f'error: "{word}" is no command', flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model", choices=["gpt2", "resnet"])
    p.add_argument("--size")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--context", type=int)
    p.add_argument("--vocab", type=int, default=50304)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--weights")
    p.add_argument("--data")
    p.add_argument("--eager", action="store_true")
    p.add_argument("--f32", action="store_true")
    p.add_argument("--device", default="cuda")
    args = p.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    serve((gpt2 if args.model == "gpt2" else resnet)(args, args.device), args.device)


main()
