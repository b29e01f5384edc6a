"""PyTorch's side of the benchmarks: the same models, steps and commands as gpt2.c and resnet.c (worker.h), PyTorch at its best settings:
bf16 autocast, torch.compile, fused AdamW, flash attention, channels-last, TF32 where f32 is left.

    peer.py gpt2 [--size 124M] [--batch 16] [--context 1024] [--vocab 50304] [--weights FILE] [--data FILE] [--eager] [--device cuda]
    peer.py resnet [--batch 256] [--size 224] [--eager] [--device cuda]
"""
import argparse
import os
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "peers"))
import models

SHAPES = {"124M": (12, 12, 768, 1024), "355M": (24, 16, 1024, 1024), "tiny": (2, 1, 64, 64)}      # layers, heads, width, context


class GPT2(models.GPT):
    """Its loss as one call, for torch.compile."""

    def forward(self, ids, target):
        return F.cross_entropy(super().forward(ids), target.reshape(-1))


def gpt2(args, device):
    layers, heads, width, context = SHAPES[args.size or "124M"]
    context = args.context or context
    torch.manual_seed(1)
    net = GPT2(layers, heads, width, context, args.vocab)
    if args.weights:
        models.read_weights(net, args.weights)
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
