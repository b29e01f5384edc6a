"""bench/peers/accuracy.py: accuracy.c's task in PyTorch: 90 % of Fashion-MNIST's test pictures, the same batches, rates and tests. The pictures lie in
memory as f32 and are taken from there by one index: no DataLoader, which costs more.

    accuracy.py [--ranks N] [--set WORD,…] [--seed N] [--target 0.9] [--data DIR]
"""
import argparse
import gzip
import json
import os
import time

import numpy as np
import torch
from torch import distributed
from torch.nn import functional as F

import models

EPOCHS, TESTS = 12, 4
parser = argparse.ArgumentParser()
parser.add_argument("--ranks", type=int, default=1)
parser.add_argument("--set", default="")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--target", type=float, default=0.9)
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
args = parser.parse_args()
rank, words = int(os.environ.get("RANK", 0)), set(args.set.split(","))
if "bind" in words and args.ranks > 1:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})


def read(which):
    with gzip.open(f"{args.data}/{which}-images-idx3-ubyte.gz") as f:
        x = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(f"{args.data}/{which}-labels-idx1-ubyte.gz") as f:
        y = np.frombuffer(f.read(), np.uint8, offset=8)
    x = torch.from_numpy(x.astype(np.float32) / np.float32(255))
    return x.to(memory_format=torch.channels_last) if "last" in words else x, torch.from_numpy(y.astype(np.int64))


def accuracy(net, x, y):
    net.eval()
    hits = torch.zeros(1)
    share = len(y) // args.ranks
    with torch.inference_mode():
        for i in range(rank * share, (rank + 1) * share, 500):
            n = min(i + 500, (rank + 1) * share)
            hits += (net(x[i:n]).argmax(1) == y[i:n]).sum()
    net.train()
    if args.ranks > 1:
        distributed.all_reduce(hits)
    return hits.item() / (share * args.ranks)


def main():
    torch.set_num_threads(1)
    if args.ranks > 1:
        distributed.init_process_group("gloo", init_method="file://" + os.environ["PEER_MEETING"], rank=rank, world_size=args.ranks)
    torch.manual_seed(args.seed)
    net = models.cnn()
    if "last" in words:
        net.to(memory_format=torch.channels_last)
    call = net
    if args.ranks > 1:
        call = torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view="view" in words, static_graph="static" in words)
    torch.manual_seed(args.seed * 1000 + rank)                  # dropout
    opt = models.optimizer("cnn", net, words)
    x, y = read("train")
    test_x, test_y = read("t10k")
    whole = 64 * args.ranks
    batches = -(-len(y) // whole)
    every = -(-batches // TESTS)
    if args.ranks > 1:
        distributed.barrier()
    since, steps, seconds, reached, testing = time.monotonic(), 0, -1, 0, 0.0
    while seconds < 0 and steps < EPOCHS * batches:
        if steps % batches == 0:
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(args.seed * 100 + steps // batches))
        rows = order[steps % batches * whole:][:whole]
        share = -(-len(rows) // args.ranks)
        rows = rows[rank * share:][:share]
        loss = F.cross_entropy(call(x[rows]), y[rows])
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        steps += 1
        if steps % batches % every and steps % batches:
            continue
        begun = time.monotonic()
        reached = accuracy(net, test_x, test_y)
        testing += time.monotonic() - begun
        if reached >= args.target:
            seconds = time.monotonic() - since
    if rank == 0:
        print(json.dumps({"seconds": seconds, "steps": steps, "accuracy": reached, "testing_s": testing}))
    if args.ranks > 1:
        models.leave()


main()
