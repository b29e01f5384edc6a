"""bench/peers/programs.py: starts the programs that are compared, and takes turns with them.

Between any two programs the calibration loop runs (bench/calibrate: FMA GFLOP/s of two threads). Where one of the two figures around a program's turn
is more than 5 % below the run's best, something else used the cores: the turn is done again, and the table says how often, and whether some remained.
"""
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from held import Watch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = ROOT / "build-peers"
DEBIAN = PEERS / "debian"
SLACK, TRIES = 0.95, 2
OPENBLAS = "/usr/lib/x86_64-linux-gnu/openblas-openmp/libopenblas.so.0"
# PyTorch's settings that are environment: an allocator that keeps memory, huge pages, another BLAS, MKL as on a processor of Intel's.
ENVIRONMENT = {
    "malloc": {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=67108864"},
    "tcmalloc": {"LD_PRELOAD": str(PEERS / "tcmalloc/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")},
    "thp": {"THP_MEM_ALLOC_ENABLE": "1"},
    "openblas": {"LD_PRELOAD": OPENBLAS},
    "mklintel": {"LD_PRELOAD": str(PEERS / "mklintel.so")},
    "procbind": {"OMP_PROC_BIND": "close"},
}


def finish(processes, what, limit, watched=False):
    """The first process's last line of JSON; all must end well. watched: with what they held (held.py)."""
    end, out = time.monotonic() + limit, []
    watch = Watch(processes) if watched else None
    if watch:
        watch.start()
    try:
        for p in processes:
            out.append(p.communicate(timeout=max(1, end - time.monotonic())))
    except subprocess.TimeoutExpired:
        sys.exit(f"run.py: {what}: not over after {limit} s")
    finally:
        if watch:
            watch.end()
        for p in processes:
            if p.poll() is None:
                p.kill()
    for p, (_, err) in zip(processes, out):
        if p.returncode:
            sys.exit(f"run.py: {what}: exit status {p.returncode}: {err[-1500:]}")
    lines = [line for line in out[0][0].splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"run.py: {what}: printed no result: {out[0][0][-500:]} {out[0][1][-500:]}")
    return dict(json.loads(lines[-1]), **({"held_mb": watch.most, "looks": watch.looks} if watch else {}))


def popen(words, env):
    return subprocess.Popen([str(w) for w in words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ours(build, program, *options, ranks=1, threads=1, watched=False, limit=600):
    tandem = [build / "launcher/tandem", "run", "-n", ranks, "--no-prefix"] if ranks > 1 else []
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), TANDEM_DEVICE="cpu")
    env["TANDEM_BENCH_T0"] = f"{time.monotonic():.6f}"
    return finish([popen([*tandem, build / "bench/peers" / program, *options], env)], f"{program} {options}", limit, watched)


def peer(script, *options, ranks=1, threads=1, words="", debian=False, watched=False, limit=600):
    """PyTorch's processes, started at once and without torchrun, which would take seconds more."""
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), PEER_RANKS=str(ranks))
    env["GLOO_SOCKET_IFNAME"] = "lo"
    env["TORCHINDUCTOR_CACHE_DIR"] = str(PEERS / "inductor")
    if debian:
        packages = DEBIAN / "usr/lib/python3/dist-packages"
        libraries = [str(pathlib.Path(OPENBLAS).parent), str(DEBIAN / "usr/lib/x86_64-linux-gnu"), str(DEBIAN / "usr/lib")]
        env.update(PYTHONPATH=str(packages), LD_LIBRARY_PATH=":".join(libraries))
    for word in () if debian else words.split(","):
        for name, value in ENVIRONMENT.get(word, {}).items():
            env[name] = f"{env[name]}:{value}" if name == "LD_PRELOAD" and name in env else value
    python = "/usr/bin/python3" if debian else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        env["PEER_MEETING"] = folder + "/meeting"
        env["TANDEM_BENCH_T0"] = f"{time.monotonic():.6f}"
        all_ = [popen([python, HERE / script, *options], dict(env, RANK=str(r))) for r in range(ranks)]
        return finish(all_, f"{script} {options} {words}", limit, watched)


def calibrate(build):
    """GFLOP/s of two threads."""
    text = subprocess.run([build / "bench/calibrate"], capture_output=True, text=True, check=True).stdout
    return float(re.search(r"([\d.]+) on two", text).group(1))


def peaks(build):
    """What this machine can do: {"fma": [one thread, two], "bandwidth": [one, two]} in GFLOP/s and GB/s."""
    return json.loads(subprocess.run([build / "bench/calibrate", "peaks"], capture_output=True, text=True, check=True).stdout)


class Turns:
    """rounds of programs in turn; result[name] is a list of what each returned. tries: how often a disturbed turn is repeated at most."""

    def __init__(self, build, kinds, rounds, tries=TRIES):
        self.kinds, self.repeated, self.disturbed, self.result = kinds, 0, 0, {name: [] for name in kinds}
        self.build, self.best = build, max(calibrate(build) for _ in range(3))
        around = {name: [] for name in kinds}
        for _ in range(rounds):
            before = calibrate(build)
            for name, call in kinds.items():
                value = call()
                after = calibrate(build)
                self.result[name].append(value)
                around[name].append(min(before, after))
                before = after
                self.best = max(self.best, after)
        for name, call in kinds.items():                        # judged by the best of the whole run
            for i in range(rounds):
                left = tries
                while around[name][i] < SLACK * self.best:
                    if left == 0:
                        self.disturbed += 1
                        break
                    left -= 1
                    self.repeated += 1
                    before, self.result[name][i], after = calibrate(build), call(), calibrate(build)
                    around[name][i] = min(before, after)
        self.worst = min(min(a) for a in around.values())

    def says(self):
        again = f", {self.repeated} disturbed turns repeated" if self.repeated else ""
        still = f", {self.disturbed} REMAINED DISTURBED: no figures" if self.disturbed else ""
        return f"calibration {self.worst:.0f} to {self.best:.0f} GFLOP/s{again}{still}"


def spread(values, form="{:.2f}"):
    values = list(values)
    return f"{form.format(statistics.median(values))} ({form.format(min(values))}..{form.format(max(values))})"
