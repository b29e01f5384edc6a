"""bench/gpu/run.py: the tables of docs/benchmarks.md that need a GPU. ./check-gpu bench N builds what this needs and starts it.

    run.py 1|2|3|4|5 --build DIR [--no-peer] [--quick]

1 GPT-2 124M: tokens/s beside PyTorch, and the losses of 200 steps on real text   2 GPT-2 355M and ResNet-50   3 each kernel family over its floor
4 from nothing to the first step, and the most device memory                      5 ddp with one rank and NCCL against plain training

Our program and PyTorch's live side by side and take turns (worker.h): windows of steps, medians over the windows. --quick: sizes for a try on
the CPU; its figures mean nothing. Every table ends with the device's rates, measured before and after: where they differ, throw it away.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
DATASHEET = 989e12              # dense bf16 of an H100 or H200 SXM, what MFU is counted against


class Worker:
    """A process that takes commands by lines."""

    def __init__(self, command, env=None):
        self.began = time.monotonic()
        self.name = os.path.basename(command[0] if "python" not in command[0] else command[1])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ, **(env or {})))
        self.expect("ready")

    def expect(self, word):
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
            if first.startswith("error"):
                raise RuntimeError(f"{self.name}: {line.strip()}")
        raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")

    def ask(self, command, word):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.expect(word)

    def steps(self, n):
        return float(self.ask(f"steps {n}", "ms")) / n

    def losses(self, n):
        return [float(x) for x in self.ask(f"losses {n}", "losses").split()]

    def memory(self):
        return int(self.ask("memory", "bytes"))

    def end(self):
        if self.process.poll() is None:
            try:
                self.process.stdin.write("quit\n")
                self.process.stdin.close()
            except OSError:
                pass
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def program(name):
    return os.path.join(args.build, "bench", "gpu", "gpu_" + name)


def ours(name, *options, env=None):
    return Worker([program(name), *map(str, options)], env)


def peer(model, *options):
    return Worker([sys.executable, os.path.join(HERE, "peer.py"), model, "--device", "cpu" if args.quick else "cuda", *map(str, options)])


def turns(workers, windows, steps, warm):
    """Milliseconds a step, by windows in turn: a list for each worker."""
    for w in workers:
        w.steps(warm)
    times = [[] for _ in workers]
    for _ in range(windows):
        for i, w in enumerate(workers):
            times[i].append(w.steps(steps))
    return times


def spread(t):
    return f"{statistics.median(t):.2f} ({min(t):.2f} to {max(t):.2f})"


def rates():
    out = subprocess.run([program("rates"), *(["256", "16"] if args.quick else [])], capture_output=True, text=True, check=True).stdout.split()
    return float(out[1]) * 1e12, float(out[2]) * 1e9


def say_rates(when, r):
    print(f"\nrates {when}: bf16 products {r[0] / 1e12:.0f} TFLOP/s, copies {r[1] / 1e9:.0f} GB/s")


def shape(size):
    layers, width, context = {"124M": (12, 768, 1024), "355M": (24, 1024, 1024), "tiny": (2, 64, 64)}[size]
    return layers, width, context, 256 if args.quick else 50304


def flops_per_token(size):
    """6 for each matrix weight, and the half of attention that a causal mask leaves: as gpt_flops_per_token."""
    layers, width, context, vocab = shape(size)
    return 6 * (12 * layers * width * width + vocab * width) + 6 * layers * width * context


def gpt_options(size, batch):
    return ["--size", size, "--batch", batch, "--vocab", shape(size)[3]]


def fits(make, batches):
    """The batch with the most samples/s that runs, by a few steps of each."""
    best = None
    for b in batches:
        try:
            with make(b) as w:
                w.steps(3)
                speed = b / w.steps(5)
        except RuntimeError as e:
            print(f"  batch {b}: {str(e)[:200]}")
            break
        print(f"  batch {b}: {1e3 * speed:.1f} rows/s", flush=True)
        if not best or speed > best[1]:
            best = (b, speed)
    return best[0] if best else None


def gpt_table(size, batches):
    print(f"\n## GPT-2 {size}, bf16, AdamW, clipping\n")
    make = {"Tandem": lambda b: ours("gpt2", *gpt_options(size, b)), "Tandem, captured": lambda b: ours("gpt2", *gpt_options(size, b), "--capture")}
    if not args.no_peer:
        make["PyTorch"] = lambda b: peer("gpt2", *gpt_options(size, b))
    batch = {name: fits(m, batches) for name, m in make.items()}
    make = {name: m for name, m in make.items() if batch[name]}        # what could not run has said why
    workers = [m(batch[name]) for name, m in make.items()]
    times = turns(workers, 3 if args.quick else 9, 2 if args.quick else 10, 3 if args.quick else 10)
    context = shape(size)[2]
    print("\n| | batch | ms a step | tokens/s | MFU (of 989 TFLOP/s) | peak memory, GiB |\n|---|---|---|---|---|---|")
    speed = {}
    for name, w, t in zip(make, workers, times):
        tokens = batch[name] * context / statistics.median(t) * 1e3
        speed[name] = tokens
        print(f"| {name} | {batch[name]} | {spread(t)} | {tokens:,.0f} | {100 * tokens * flops_per_token(size) / DATASHEET:.1f} % | {w.memory() / 2**30:.2f} |")
        w.end()
    if "PyTorch" in speed:
        print("\n" + ", ".join(f"{name} over PyTorch: {v / speed['PyTorch']:.3f}" for name, v in speed.items() if name != "PyTorch"))


def loss_curves():
    """Both from the same weights over the same bytes: this repository's own text."""
    import numpy

    steps, batch, context = (4, 2, 64) if args.quick else (200, 8, 1024)
    size = "tiny" if args.quick else "124M"
    names = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True).stdout.split()
    if not names:
        names = [os.path.relpath(os.path.join(d, f), ROOT) for d, _, fs in os.walk(ROOT) for f in fs if f.endswith((".c", ".h", ".md", ".cu"))]
    text = b"".join(open(os.path.join(ROOT, n), "rb").read() for n in sorted(names) if n.endswith((".c", ".h", ".md", ".cu")))
    need = steps * batch * context + 1
    ids = numpy.frombuffer((text * (need // len(text) + 1))[:need], numpy.uint8).astype(numpy.int64)
    rows = numpy.stack([ids[i * context:(i + 1) * context + 1] for i in range(steps * batch)]).reshape(steps, batch, context + 1)
    with tempfile.TemporaryDirectory() as d:
        numpy.save(d + "/ids.npy", rows)
        options = gpt_options(size, batch) + ["--data", d + "/ids.npy"]
        with ours("gpt2", *options, "--save", d + "/w.safetensors") as w:
            a = w.losses(steps)
        with peer("gpt2", *options, "--weights", d + "/w.safetensors") as w:
            b = w.losses(steps)
    apart = [abs(x - y) / y for x, y in zip(a, b)]
    print(f"\n## {steps} steps on real text ({len(text)} bytes), the same weights and rows\n\n| step | Tandem | PyTorch | apart |\n|---|---|---|---|")
    for i in sorted({0, 1, 4, 9, 19, 49, 99, 149, steps - 1} & set(range(steps))):
        print(f"| {i + 1} | {a[i]:.4f} | {b[i]:.4f} | {100 * apart[i]:.2f} % |")
    print(f"\nmean over the last tenth: {statistics.mean(a[-max(1, steps // 10):]):.4f} and {statistics.mean(b[-max(1, steps // 10):]):.4f}; most apart {100 * max(apart):.2f} %")


def bench1():
    gpt_table("tiny" if args.quick else "124M", [2, 4] if args.quick else [16, 32])
    if not args.no_peer:
        loss_curves()


def bench2():
    gpt_table("tiny" if args.quick else "355M", [2] if args.quick else [8, 16])
    batch, size = (2, 32) if args.quick else (256, 224)
    print(f"\n## ResNet-50, bf16, {size}x{size}, batch {batch}\n\n| | ms a step | pictures/s | peak memory, GiB |\n|---|---|---|---|")
    workers = {"Tandem": ours("resnet", "--batch", batch, "--size", size, *(["--depth", 18] if args.quick else []))}
    if not args.no_peer:
        workers["PyTorch"] = peer("resnet", "--batch", batch, "--size", size)
    times = turns(list(workers.values()), 3 if args.quick else 9, 1 if args.quick else 10, 1 if args.quick else 10)
    for (name, w), t in zip(workers.items(), times):
        print(f"| {name} | {spread(t)} | {batch / statistics.median(t) * 1e3:,.0f} | {w.memory() / 2**30:.2f} |")
        w.end()


def gpt_floor(size, batch, r):
    """Seconds that each family of kernels needs at least in a step, at the measured rates: (arithmetic, bytes). Activations bf16, the residual
    stream and weights f32; each tensor read and written once by each kernel that must."""
    layers, width, context, vocab = shape(size)
    n = batch * context
    weights = 12 * layers * width * width + vocab * width + context * width
    e = n * width                                              # elements of one activation
    return {
        "products": (6.0 * n * (12 * layers * width * width + vocab * width) / r[0], 0),
        "attention": (layers * 7.0 * n * context * width / r[0], layers * (4 + 8) * e * 2 / r[1]),
        "norms": (0, (2 * layers + 1) * e * ((4 + 2) + (2 + 4 + 4 + 4)) / r[1]),
        "gelu": (0, layers * 4 * e * (2 + 2 + 2 + 2 + 2) / r[1]),
        "residual": (0, 2 * layers * e * (4 + 2 + 4) / r[1]),
        "loss": (0, 3.0 * n * vocab * 2 / r[1]),
        "embedding": (0, 3.0 * e * 4 / r[1]),
        "optimizer": (0, weights * (16 + 12 + 4) / r[1]),          # and the norm of the gradients
        "casts": (0, weights * (4 + 2) / r[1]),
    }


FAMILY = [("gemm", "products"), ("linear", "products"), ("attention", "attention"), ("layer_norm", "norms"), ("gelu", "gelu"), ("cross_entropy", "loss"),
          ("embedding", "embedding"), ("index", "embedding"), ("adamw", "optimizer"), ("sumsq", "optimizer"), ("copy", "casts"), ("cast", "casts"),
          ("add", "residual"), ("sum", "products")]


def family(kernel):
    return next((f for part, f in FAMILY if part in kernel), "other")


def bench3():
    size, batch = ("tiny", 2) if args.quick else ("124M", 32)
    r = rates()
    with ours("gpt2", *gpt_options(size, batch)) as w:
        step = statistics.median(turns([w], 3, 2 if args.quick else 10, 5)[0])
        kernels = {} if args.quick else json.loads(w.ask("kernels 5", "kernels"))
    mine = {}
    for name, (calls, ms) in kernels.items():
        k = mine.setdefault(family(name), [0, 0.0])
        k[0] += calls / 5
        k[1] += ms / 5
    print(f"\n## GPT-2 {size}, batch {batch}: each family over its floor, ms a step\n\n| family | launches | ours | floor: arithmetic | bytes | ratio | lost |\n|---|---|---|---|---|---|---|")
    total = 0
    rows = []
    for name, (a, b) in gpt_floor(size, batch, r).items():
        calls, ms = mine.pop(name, (0, 0))
        floor = 1e3 * max(a, b)
        total += floor
        rows.append((ms - floor, f"| {name} | {calls:.0f} | {ms:.3f} | {1e3 * a:.3f} | {1e3 * b:.3f} | {ms / floor:.2f} | {ms - floor:.3f} |"))
    rows += [(ms, f"| {name} | {calls:.0f} | {ms:.3f} | | | | {ms:.3f} |") for name, (calls, ms) in mine.items()]
    print("\n".join(row for _, row in sorted(rows, reverse=True)))
    print(f"\nstep {step:.3f} ms, floor {total:.3f} ms, ratio {step / total:.2f}; kernels together {sum(k[1] for k in kernels.values()) / 5:.3f} ms")
    print("\nthe ten kernels that take longest, ms a step: " + ", ".join(f"{k} {ms / 5:.3f}" for k, (_, ms) in list(kernels.items())[:10]))
    say_rates("before", r)
    say_rates("after", rates())


def bench4():
    size, batch = ("tiny", 2) if args.quick else ("124M", 8)
    print(f"\n## From the start of the process to the end of the first step, GPT-2 {size}, batch {batch}\n\n| | s, median of 5 | then ms a step | peak memory, GiB |\n|---|---|---|---|")
    kinds = {"Tandem": lambda: ours("gpt2", *gpt_options(size, batch))}
    if not args.no_peer:
        kinds["PyTorch eager"] = lambda: peer("gpt2", *gpt_options(size, batch), "--eager")
        kinds["PyTorch compiled"] = lambda: peer("gpt2", *gpt_options(size, batch))
    for name, make in kinds.items():
        first, later, memory = [], 0, 0
        for _ in range(2 if args.quick else 5 if "compiled" not in name else 3):
            with make() as w:
                w.steps(1)
                first.append(time.monotonic() - w.began)
                later = w.steps(5)
                memory = w.memory()
        print(f"| {name} | {spread(first)} | {later:.2f} | {memory / 2**30:.2f} |")


def bench5():
    size, batch = ("tiny", 2) if args.quick else ("124M", 16)
    plain = ours("gpt2", *gpt_options(size, batch))
    ddp = ours("gpt2", *gpt_options(size, batch), "--ddp", env={} if args.quick else {"TANDEM_COMM": "nccl"})
    times = turns([plain, ddp], 3 if args.quick else 15, 2 if args.quick else 10, 3 if args.quick else 10)
    ratio = [b / a for a, b in zip(*times)]
    print(f"\n## td_ddp with one rank, NCCL on, against plain training: GPT-2 {size}, batch {batch}\n")
    print(f"plain {spread(times[0])} ms a step, ddp {spread(times[1])}; ratio of neighbouring windows {spread(ratio)}")
    plain.end()
    ddp.end()


def versions():
    out = []
    if not args.no_peer:
        import torch
        out.append(f"PyTorch {torch.__version__}")
        if torch.cuda.is_available():
            out += [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    try:
        out.append("driver " + subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.split()[0])
    except (OSError, IndexError):
        pass
    print("# " + ", ".join(out + [platform.processor() or platform.machine(), f"{os.cpu_count()} cores"]))


parser = argparse.ArgumentParser()
parser.add_argument("which", choices=["1", "2", "3", "4", "5"])
parser.add_argument("--build", required=True)
parser.add_argument("--no-peer", action="store_true")
parser.add_argument("--quick", action="store_true")
args = parser.parse_args()
if args.quick:
    os.environ["TANDEM_DEVICE"] = "cpu"
versions()
if args.which != "3":
    say_rates("before", rates())
{"1": bench1, "2": bench2, "3": bench3, "4": bench4, "5": bench5}[args.which]()
if args.which != "3":
    say_rates("after", rates())
