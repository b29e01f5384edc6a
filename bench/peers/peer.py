"""bench/peers/peer.py: PyTorch's side: the same as ours.c, the same options, the same line of JSON, and settings as words:

    peer.py mlp|cnn|resnet|gpt|gpt2 [--ranks N] [--threads N] [--set WORD,…] [--steps N] [--warm N] [--weights FILE] [--no-dropout]

One process of --ranks: RANK and PEER_MEETING (a file that does not exist yet) in the environment. Words:
    fused, foreach   the optimizer's implementation; else one parameter at a time
    view             DDP writes gradients into its buckets (gradient_as_bucket_view)
    static           DDP with static_graph
    last             channels last
    compile          torch.compile
    bind             each rank on its own core
Others, for the process's environment (allocator, BLAS), are programs.py's.
"""
import argparse
import json
import os
import statistics
import time

parser = argparse.ArgumentParser()
parser.add_argument("model", choices=["mlp", "cnn", "resnet", "gpt", "gpt2"])
parser.add_argument("--ranks", type=int, default=1)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--set", default="")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--warm", type=int, default=5)
parser.add_argument("--weights")
parser.add_argument("--no-dropout", action="store_true")
args = parser.parse_args()
rank, words = int(os.environ.get("RANK", 0)), set(args.set.split(","))
if "bind" in words and args.ranks > 1:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})

import torch
from torch import distributed
from torch.nn import functional as F

import models

POOL = 8


def mb(path, name):
    with open(path) as f:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in f if line.startswith(name))


def main():
    torch.set_num_threads(args.threads)
    if args.ranks > 1:
        distributed.init_process_group("gloo", init_method="file://" + os.environ["PEER_MEETING"], rank=rank, world_size=args.ranks)
    torch.manual_seed(1)
    net = models.BUILD[args.model]()
    if args.weights:
        models.read_weights(net, args.weights)
    net.train(not args.no_dropout)
    last = "last" in words and args.model in ("cnn", "resnet")
    if last:
        net.to(memory_format=torch.channels_last)
    call = net
    if args.ranks > 1:
        call = torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view="view" in words, static_graph="static" in words)
    if "compile" in words:
        call = torch.compile(call)
    opt = models.optimizer(args.model, net, words)
    pool = [models.batch(args.model, (i * args.ranks + rank) * models.BATCH[args.model]) for i in range(POOL)]
    if last:
        pool = [(x.to(memory_format=torch.channels_last), y) for x, y in pool]

    losses, ms, parts, first = [], [], [], 0
    for i in range(args.warm + args.steps):
        x, y = pool[i % POOL]
        since = time.monotonic()
        loss = F.cross_entropy(call(x), y)
        t1 = time.monotonic()
        loss.backward()
        t2 = time.monotonic()
        opt.step()
        opt.zero_grad(set_to_none=True)
        end = time.monotonic()
        first = first or end
        if i < args.warm:
            losses.append(loss.item())
        else:
            ms.append(1e3 * (end - since))
            parts.append((1e3 * (t1 - since), 1e3 * (t2 - t1), 1e3 * (end - t2)))
        del loss
    most = torch.tensor([mb("/proc/self/status", "VmHWM:"), mb("/proc/self/smaps_rollup", "Pss:")])
    if args.ranks > 1:
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if rank == 0:
        names = ("forward", "backward", "optimizer")
        print(json.dumps({"losses": losses, "ms": ms, "parts": {n: statistics.median(p[k] for p in parts) for k, n in enumerate(names)} if parts else {},
                          "hwm_mb": most[0].item(), "pss_mb": most[1].item(),
                          "first_ms": 1e3 * (first - float(os.environ["TANDEM_BENCH_T0"])) if "TANDEM_BENCH_T0" in os.environ else -1,
                          "torch": torch.__version__}))
    if args.ranks > 1:
        models.leave()


main()
