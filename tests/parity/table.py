"""tests/parity/table.py FOLDER: the table of docs/parity.md, from what ./check-peers left in FOLDER.

Errors as parity.c measures them: the worst over the norm, the sum and 64 elements of every tensor of a kind, relative.
"""
import os
import sys

import numpy as np
from safetensors.numpy import load_file

KINDS = ["logits", "loss", "grad", "sgd", "adamw", "lamb", "lars"]


def rms(v):
    return v[1] / np.sqrt(v[0])


def error(a, b, floor):
    scale = rms(b)
    if scale < 1e-10 * floor:
        scale = floor
    worst = max(abs(a[1] - b[1]) / (scale * np.sqrt(b[0])), abs(a[2] - b[2]) / (scale * b[0]))
    return max(worst, float(np.max(np.abs(a[3:] - b[3:]) / np.maximum(np.abs(b[3:]), scale))))


def worst(ours, peer, kind, floor):
    errors = [error(ours[k], peer[k], floor) for k in peer if k.split("/")[0] == kind]
    return f"{max(errors):.0e}" if errors else "-"


def main(folder):
    print("| model | compared | " + " | ".join(KINDS) + " |")
    print("|---" * (len(KINDS) + 2) + "|")
    for name in sorted(os.listdir(os.path.join(folder, "live"))):
        live, live32, ours, ours32 = (load_file(os.path.join(folder, d, name)) for d in ("live", "live32", "ours", "ours32"))
        grads = [v for k, v in live.items() if k.startswith("grad/")]
        floor = np.sqrt(sum(v[1] ** 2 for v in grads) / sum(v[0] for v in grads))
        model = name.removesuffix(".safetensors")
        for label, a in (("Tandem f64", ours), ("Tandem f32", ours32), ("PyTorch f32", live32)):
            print(f"| {model} | {label} | " + " | ".join(worst(a, live, k, floor if k == "grad" else 0) for k in KINDS) + " |")


main(sys.argv[1])
