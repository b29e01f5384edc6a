"""bench/peers/gloo.py: PyTorch's all-reduce over gloo, f32 sums in place, timed as bench/allreduce.c times: each call begins at a barrier, its time is the
slowest rank's. Rank 0 prints one line of JSON, bytes to the median in microseconds.
"""
import json
import os
import statistics
import time

import torch
from torch import distributed

import models

rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("PEER_RANKS", 2))
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + os.environ["PEER_MEETING"], rank=rank, world_size=ranks)
medians = {}
for size, calls in ((4 << 10, 500), (25 << 20, 15)):
    x, taken = torch.zeros(size // 4), []
    for _ in range(calls + 1):
        distributed.barrier()
        since = time.monotonic()
        distributed.all_reduce(x)
        taken.append(1e6 * (time.monotonic() - since))
    slowest = torch.tensor(taken[1:])
    distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
    medians[size] = statistics.median(slowest.tolist())
if rank == 0:
    print(json.dumps(medians))
models.leave()
