#!/usr/bin/env python3
"""tests/parity/golden.py FOLDER [MODEL ...] [--dtype f64|f32]: PyTorch's side of the comparison.

Writes FOLDER/MODEL.safetensors: of the logits, the loss, every gradient and buffer after one backward, and the weights after 20 steps of
SGD, AdamW, LAMB and LARS: the number of elements, the norm, the sum and 64 elements, in f64. Models, numbers and hyperparameters are those of models.c and run.c.
Needs torch, transformers, numpy and safetensors (./check-peers makes an environment that has them).
"""
import argparse
import math
import os

import numpy as np
import torch
from safetensors.numpy import save_file

import models

STEPS, SAMPLES = 20, 64


def digest(x):
    v = x.detach().to(torch.float64).contiguous().reshape(-1).numpy()
    n = v.size
    k = min(n, SAMPLES)
    return np.concatenate([[n, math.sqrt(float(np.dot(v, v))), float(v.sum())], v[[j * n // k for j in range(k)]]])


class Lamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2, with phi(z) = z."""

    def __init__(self, params, lr, betas, eps, weight_decay):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            b1, b2 = g["betas"]
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["t"], s["m"], s["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
                s["t"] += 1
                s["m"] = b1 * s["m"] + (1 - b1) * p.grad
                s["v"] = b2 * s["v"] + (1 - b2) * p.grad ** 2
                m, v = s["m"] / (1 - b1 ** s["t"]), s["v"] / (1 - b2 ** s["t"])
                u = m / (v.sqrt() + g["eps"]) + g["weight_decay"] * p
                np_, nu = p.double().norm(), u.double().norm()
                ratio = float(np_ / nu) if np_ > 0 and nu > 0 else 1.0
                p -= g["lr"] * ratio * u


class Lars(torch.optim.Optimizer):
    """You et al. 2017, algorithm 1."""

    def __init__(self, params, lr, momentum, weight_decay, trust):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["v"] = torch.zeros_like(p)
                w, n = float(p.double().norm()), float(p.grad.double().norm())
                rate = g["lr"] * (g["trust"] * w / (n + g["weight_decay"] * w) if w > 0 and n > 0 else 1.0)
                s["v"] = g["momentum"] * s["v"] + rate * (p.grad + g["weight_decay"] * p)
                p -= s["v"]


def optimizer(name, params):
    decay, betas, eps = 2.0 ** -6, (0.875, 0.984375), 2.0 ** -17
    if name == "sgd":
        return torch.optim.SGD(params, lr=2.0 ** -6, momentum=0.875, weight_decay=decay)
    if name == "adamw":
        return torch.optim.AdamW(params, lr=2.0 ** -10, betas=betas, eps=eps, weight_decay=decay)
    if name == "lamb":
        return Lamb(params, lr=2.0 ** -10, betas=betas, eps=eps, weight_decay=decay)
    return Lars(params, lr=2.0 ** -2, momentum=0.875, weight_decay=decay, trust=2.0 ** -7)


def fresh(model, dtype):
    net = model.build()
    models.draw_weights(net)
    return net.to(dtype)


def run(model, dtype):
    out = {}
    net = fresh(model, dtype)
    logits = model.logits(net, 0, dtype)
    loss = model.loss(logits, 0)
    loss.backward()
    out["logits"], out["loss"] = digest(logits), digest(loss)
    for name, p in models.parameters(net):
        if p.grad is not None:
            out["grad/" + name] = digest(p.grad)
    for name, b in models.buffers(net):
        out["buffer/" + name] = digest(b)
    for rule in ("sgd", "adamw", "lamb", "lars"):
        net = fresh(model, dtype)
        opt = optimizer(rule, [p for _, p in models.parameters(net)])
        opt.param_groups[0]["lr"] *= model.rates.get(rule, 1.0)
        for k in range(STEPS):
            opt.zero_grad(set_to_none=True)
            model.loss(model.logits(net, k, dtype), k).backward()
            opt.step()
        for name, p in models.parameters(net):
            out[rule + "/" + name] = digest(p)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("model", nargs="*")
    parser.add_argument("--dtype", choices=["f64", "f32"], default="f64")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.makedirs(args.folder, exist_ok=True)
    for name in args.model or models.MODELS:
        path = os.path.join(args.folder, name + ".safetensors")
        result = run(models.MODELS[name], torch.float64 if args.dtype == "f64" else torch.float32)
        save_file({k: np.ascontiguousarray(v) for k, v in result.items()}, path, {"torch": torch.__version__})
        print(f"{path}: {len(result)} tensors")


if __name__ == "__main__":
    main()
