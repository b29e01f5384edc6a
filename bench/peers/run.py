"""bench/peers/run.py: the comparison with PyTorch; bench/peers/run starts it and says its arguments.

Each row of the table is a case of training, or something that users wait for. Programs are started anew for each turn, take turns within one run
(programs.py), and give medians of their steps; shown is the median of the turns (lowest..highest), ratios are formed turn by turn. Before a step is
timed, the losses of its first steps are compared, both sides beginning from the same weights and rows, dropout off.

PyTorch: the same threads, batch, numbers, dtype and optimizer; its ranks are started at once by this script (no torchrun), batches lie in memory, gloo
underneath DDP, settings as rows.py has them. Results go to build-peers/results, one file a row.
"""
import argparse
import contextlib
import csv
import datetime
import io
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from programs import DEBIAN, HERE, PEERS, ROOT, Turns, ours, peaks, peer, spread
from rows import COMPILED, MEMORY_AIM, SETTINGS, STEPS

RESULTS, HISTORY = PEERS / "results", ROOT / "bench" / "history.csv"
OTHERS = ["allreduce", "start", "memory", "accuracy"]
parser = argparse.ArgumentParser(prog="bench/peers/run")
parser.add_argument("rows", nargs="*")
parser.add_argument("--build", required=True)
parser.add_argument("--rounds", type=int)
parser.add_argument("--record", action="store_true")
parser.add_argument("--debian", action="store_true")
parser.add_argument("--seed", type=int)
parser.add_argument("--no-check", action="store_true")
parser.add_argument("--more", action="store_true")
parser.add_argument("--only", choices=STEPS)
args = parser.parse_args()
BUILD = pathlib.Path(args.build)


def machine():
    info = dict(line.split(":", 1) for line in open("/proc/cpuinfo").read().split("\n\n")[0].split("\n") if ":" in line)
    info = {k.strip(): v.strip() for k, v in info.items()}
    return f"{info.get('model name', '?')} family {info.get('cpu family', '?')} model {info.get('model', '?')}, {len(os.sched_getaffinity(0))} cores"


def commit():
    return subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or "?"


def store(row, **fields):
    RESULTS.mkdir(parents=True, exist_ok=True)
    what = dict(row=row, when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), commit=commit(), machine=machine(), **fields)
    (RESULTS / f"{row}.json").write_text(json.dumps(what, indent=1))
    return what


def stored(row):
    path = RESULTS / f"{row}.json"
    return json.loads(path.read_text()) if path.exists() else None


def options(s, steps, warm):
    return [s.model, "--steps", steps, "--warm", warm]


def ours_step(s, *more, steps=0, warm=1, watched=False):
    return ours(BUILD, "ours", *options(s, steps, warm), *more, ranks=s.ranks, threads=s.threads, watched=watched)


def peer_step(s, words, *more, steps=0, warm=1, debian=False, watched=False):
    return peer("peer.py", *options(s, steps, warm), "--ranks", s.ranks, "--threads", s.threads, "--set", words, *more, ranks=s.ranks, threads=s.threads,
                words=words, debian=debian, watched=watched)


def check(name, s):
    """The same mathematics: the losses of the first steps from the same weights."""
    n = 3 if s.model == "gpt2" else 5
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/weights.safetensors"
        a = ours_step(s, "--no-dropout", "--save", path, warm=n)["losses"]
        b = ours_step(s, "--no-dropout", "--capture", warm=n)["losses"]
        c = peer_step(s, SETTINGS[name], "--no-dropout", "--weights", path, warm=n)["losses"]
    apart = max(abs(x - y) / abs(y) for x, y in zip(a, c))
    if a != b:
        sys.exit(f"run.py: {name}: losses of captured steps differ from those of eager ones: {b} and {a}")
    if len(a) != n or not apart <= s.tolerance:
        sys.exit(f"run.py: {name}: losses of the first steps are apart by {apart:.1e} of PyTorch's, {s.tolerance:.0e} is allowed: {a} and {c}")
    print(f"the first {n} losses: {', '.join(f'{x:.5f}' for x in a)}; apart from PyTorch's by {apart:.1e} at most")
    checks = stored("checks") or {"losses": {}}
    store("checks", losses=dict(checks["losses"], **{name: {"apart": apart, "steps": n, "commit": commit()}}))


def step_row(name):
    s = STEPS[name]
    print(f"\n## {s.title}\n")
    old = stored(name) if args.more else None
    if old and old["commit"] != commit():
        sys.exit(f"run.py: {name}: --more adds to turns of the same commit; those stored are of {old['commit']}, this is {commit()}")
    if not old and not args.no_check:
        check(name, s)
    kinds = {"eager": lambda: ours_step(s, steps=s.steps, warm=s.warm), "captured": lambda: ours_step(s, "--capture", steps=s.steps, warm=s.warm),
             "torch": lambda: peer_step(s, SETTINGS[name], steps=s.steps, warm=s.warm)}
    if name in COMPILED:
        kinds["compiled"] = lambda: peer_step(s, COMPILED[name], steps=s.steps, warm=s.warm)
    limits = peaks(BUILD)
    turns = Turns(BUILD, kinds, args.rounds or s.rounds)
    out = {k: {"ms": [statistics.median(v["ms"]) for v in r], "hwm_mb": max(v["hwm_mb"] for v in r), "pss_mb": max(v["pss_mb"] for v in r),
               "parts": {p: statistics.median(v["parts"][p] for v in r) for p in r[0]["parts"]}} for k, r in turns.result.items()}
    says = turns.says()
    if old:
        for k, v in out.items():
            v["ms"] = old["kinds"][k]["ms"] + v["ms"]
            v["hwm_mb"], v["pss_mb"] = max(v["hwm_mb"], old["kinds"][k]["hwm_mb"]), max(v["pss_mb"], old["kinds"][k]["pss_mb"])
        says = old["says"] + "; " + says
        limits = {k: [max(a, b) for a, b in zip(v, old["peaks"][k])] for k, v in limits.items()}
    return store(name, kinds=out, calibration=[turns.worst, turns.best], says=says, peaks=limits, settings=SETTINGS[name], torch=turns.result["torch"][0]["torch"])


def ratios(r, ours_kind):
    """Turn by turn: PyTorch's time, the better of its two, over ours."""
    theirs = r["kinds"]["torch"]["ms"]
    if "compiled" in r["kinds"]:
        theirs = [min(a, b) for a, b in zip(theirs, r["kinds"]["compiled"]["ms"])]
    return [t / o for t, o in zip(theirs, r["kinds"][ours_kind]["ms"])]


def better(r):
    return max(("eager", "captured"), key=lambda k: statistics.median(ratios(r, k)))


def best_peaks():
    """The highest of all rows that are stored: a moment's disturbance lowers a peak, nothing raises it."""
    found = [r["peaks"] for r in map(stored, STEPS) if r]
    return {k: [max(f[k][i] for f in found) for i in (0, 1)] for k in found[0]}


def floor(r):
    """ms that the arithmetic and the bytes of a rank's step need at the measured limits, all cores at work."""
    s, p = STEPS[r["row"]], best_peaks()
    share = 1 / s.ranks
    return 1e3 * s.flops / (p["fma"][1] * share * 1e9), 1e3 * s.bytes() / (p["bandwidth"][1] * share * 1e9)


def compared(row):
    c = (stored("checks") or {"losses": {}})["losses"].get(row)
    return f"losses of the first {c['steps']} steps apart by {c['apart']:.0e} at most ({c['commit']})" if c else "losses not compared"


def steps_table(names):
    found = [r for r in map(stored, names) if r]
    if not found:
        return
    print("\n| step, ms | Tandem, eager | Tandem, captured | PyTorch | PyTorch, compiled | faster by: eager | captured | aim | change |\n|---|---|---|---|---|---|---|---|---|")
    for r in found:
        s, k = STEPS[r["row"]], r["kinds"]
        cells = [spread(k[x]["ms"]) if x in k else "" for x in ("eager", "captured", "torch", "compiled")]
        print(f"| {s.title} | {' | '.join(cells)} | {spread(ratios(r, 'eager'))} | {spread(ratios(r, 'captured'))} | {s.aim} | {change(r['row'], statistics.median(ratios(r, better(r))), r['machine'])} |")
    print("\n| floor of a step | GFLOP | ms at FMA peak | MB | ms at bandwidth | ours over the larger | over both | forward, backward, exposed, optimizer | PyTorch's: forward, backward, optimizer |\n|---|---|---|---|---|---|---|---|---|")
    for r in found:
        s, (a, b), k = STEPS[r["row"]], floor(r), r["kinds"]
        mine = min(statistics.median(k[x]["ms"]) for x in ("eager", "captured"))
        parts = [", ".join(f"{k[x]['parts'][p]:.2f}" for p in names) for x, names in (("eager", ("forward", "backward", "exposed", "optimizer")), ("torch", ("forward", "backward", "optimizer")))]
        print(f"| {r['row']} | {s.flops / 1e9:.2f} | {a:.2f} | {s.bytes() / 1e6:.0f} | {b:.2f} | {mine / max(a, b):.2f} | {mine / (a + b):.2f} | {parts[0]} | {parts[1]} |")
    p = best_peaks()
    print(f"\nPeak of two threads: {p['fma'][1]:.0f} GFLOP/s, {p['bandwidth'][1]:.0f} GB/s.\n")
    for r in found:
        print(f"- {r['row']}: {r['when']}, {r['commit']}, {r['says']}; "
              f"PyTorch {r['torch']} ({r['settings']}{'; compiled: ' + COMPILED[r['row']] if r['row'] in COMPILED else ''});"
              f" {compared(r['row'])}")


# ---- all-reduce ------------------------------------------------------------------------------------------------------------

def mpi_round(**mca):
    """One round of bench/allreduce: {size: {way: microseconds}}"""
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_NUM_THREADS="1", TANDEM_DEVICE="cpu",
               **{f"OMPI_MCA_{k}": v for k, v in mca.items()})
    text = subprocess.run(["mpirun.openmpi", "-q", "-np", "2", BUILD / "bench/allreduce", "1"], env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    found = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if cells[0] in ("4 KB", "25 MB"):
            values = [re.match(r"([\d.]+) (us|ms)", c) for c in cells[1:6]]
            us = [float(m[1]) * (1 if m[2] == "us" else 1e3) for m in values]
            found[{"4 KB": 4 << 10, "25 MB": 25 << 20}[cells[0]]] = dict(zip(("arena", "private", "over", "mpi", "copy"), us))
    return found


def allreduce():
    print("\n## All-reduce of f32 sums, 2 ranks\n")
    kinds = {"bound": lambda: mpi_round(hwloc_base_binding_policy="core", mpi_yield_when_idle="0"),
             "yielding": lambda: mpi_round(hwloc_base_binding_policy="none", mpi_yield_when_idle="1"), "gloo": lambda: peer("gloo.py", ranks=2)}
    turns = Turns(BUILD, kinds, args.rounds or 5)
    rows = {}
    for size in (4 << 10, 25 << 20):
        ways = {f"{way}, {k}": [v[size][way] for v in turns.result[k]] for k in ("bound", "yielding") for way in ("arena", "private", "mpi")}
        rows[size] = dict(ways, gloo=[v[str(size)] for v in turns.result["gloo"]])
    return store("allreduce", us=rows, says=turns.says(), calibration=[turns.worst, turns.best])


def allreduce_table():
    r = stored("allreduce")
    if not r:
        return
    print("\n| all-reduce, us | arena | private | MPI_Allreduce | arena, unbound | private, unbound | MPI_Allreduce, unbound, yielding | gloo | arena under the faster MPI by | private by | arena under gloo by | aim |\n|" + "---|" * 12)
    for size, us in r["us"].items():
        m = {k: statistics.median(v) for k, v in us.items()}
        mpi, arena, private = (min(m[w + ", bound"], m[w + ", yielding"]) for w in ("mpi", "arena", "private"))
        aim = "arena 3000 us, private at or under MPI" if int(size) > 1 << 20 else "at or under MPI"
        cells = [spread(us[f"{w}, {k}"], "{:.1f}") for k in ("bound", "yielding") for w in ("arena", "private", "mpi")]
        print(f"| {int(size) >> 10} KB | {' | '.join(cells)} | {spread(us['gloo'], '{:.0f}')} | {mpi / arena:.2f} | {mpi / private:.2f} | {m['gloo'] / arena:.1f} | {aim} |")
    print(f"\n{r['when']}, {r['commit']}, {r['says']}")


# ---- start, memory, accuracy --------------------------------------------------------------------------------------------------

def start():
    print("\n## From the start of the processes to the end of the first step, MLP, 2 ranks\n")
    s, kinds = STEPS["mlp"], {}
    kinds["ours"] = lambda: ours_step(s)
    kinds["torch"] = lambda: peer_step(s, "view")
    if args.debian:
        kinds["debian"] = lambda: peer_step(s, "view", debian=True)
    turns = Turns(BUILD, kinds, args.rounds or 7)
    return store("start", ms={k: [v["first_ms"] for v in r] for k, r in turns.result.items()}, mb={k: max(v["hwm_mb"] for v in r) for k, r in turns.result.items()},
                 says=turns.says(), calibration=[turns.worst, turns.best])


def start_table():
    r = stored("start")
    if not r:
        return
    names = {"ours": "Tandem", "torch": "PyTorch (PyPI)", "debian": "PyTorch 1.13 (Debian, CPU only)"}
    print("\n| start to the end of the first step | ms | faster by | aim |\n|---|---|---|---|")
    for k, ms in r["ms"].items():
        print(f"| {names[k]} | {spread(ms, '{:.0f}')} | {spread((a / b for a, b in zip(ms, r['ms']['ours'])), '{:.1f}') if k != 'ours' else ''} | {'' if k == 'ours' else 20} |")
    print(f"\n{r['when']}, {r['commit']}, {r['says']}")


def memory():
    """Of a rank over its first steps; allocators that keep memory are left out of PyTorch's settings."""
    print("\n## Peak memory of a rank\n")
    mb = (stored("memory") or {"mb": {}})["mb"]
    for name, s in STEPS.items():
        if args.only not in (None, name):
            continue
        words = ",".join(w for w in SETTINGS[name].split(",") if w not in ("malloc", "tcmalloc", "thp"))
        how = dict(steps=s.steps, watched=True)
        found = {"eager": ours_step(s, **how), "captured": ours_step(s, "--capture", **how), "torch": peer_step(s, words, **how)}
        if args.debian:
            found["debian"] = peer_step(s, "view", debian=True, **how)
        mb.setdefault(name, {}).update({k: {"hwm": v["hwm_mb"], "pss": v["held_mb"] / s.ranks, "end": v["pss_mb"], "pool": v.get("pool_mb"), "looks": v["looks"]} for k, v in found.items()})
        what = store("memory", mb=mb)
    return what


def held(mb, ranks):
    """What is compared: of several ranks what the machine spends on one; of one the kernel's own figure, which misses nothing."""
    return mb["pss"] if ranks > 1 else mb["hwm"]


def memory_table():
    r = stored("memory")
    if not r:
        return
    names = {"eager": "Tandem, eager", "captured": "captured", "torch": "PyTorch (PyPI)", "debian": "PyTorch 1.13 (Debian)"}
    print(f"\n| peak memory of a rank, MB: Pss, VmHWM | {' | '.join(names.values())} | smallest over ours: Pss | VmHWM | aim |\n|" + "---|" * 8)
    for name, k in r["mb"].items():
        over = [min(k[x][of] for x in ("torch", "debian") if x in k) / min(k["eager"][of], k["captured"][of]) for of in ("pss", "hwm")]
        cells = [f"{k[x]['pss']:.0f}, {k[x]['hwm']:.0f}" if x in k else "" for x in names]
        print(f"| {STEPS[name].title} | {' | '.join(cells)} | {over[0]:.2f} | {over[1]:.2f} | {MEMORY_AIM[name]} |")
    print(f"\n{r['when']}, {r['commit']}; Pss from {min(v['looks'] for k in r['mb'].values() for v in k.values())} looks or more")


def accuracy():
    print("\n## CNN, 2 ranks: until 90 % of Fashion-MNIST's test pictures are named\n")
    old = stored("accuracy") if args.seed else None
    seeds = old["seeds"] if old else {}
    for seed in [args.seed] if args.seed else range(1, 1 + (args.rounds or 3)):
        kinds = {"ours": lambda: ours(BUILD, "accuracy", "--seed", seed, ranks=2, limit=900),
                 "torch": lambda: peer("accuracy.py", "--ranks", 2, "--seed", seed, "--set", SETTINGS["cnn"], ranks=2, words=SETTINGS["cnn"], limit=1800)}
        turns = Turns(BUILD, kinds, 1, tries=0)               # minutes each: what is beside them for a while is beside both
        seeds[str(seed)] = dict({k: v[0] for k, v in turns.result.items()}, says=turns.says(), calibration=[turns.worst, turns.best])
        result = store("accuracy", seeds=seeds, calibration=[turns.worst, turns.best])
    return result


def accuracy_table():
    r = stored("accuracy")
    if not r:
        return
    print("\n| seed | Tandem: s (steps) | PyTorch: s (steps) | faster by |\n|---|---|---|---|")
    for seed, k in sorted(r["seeds"].items()):
        a, b = k["ours"], k["torch"]
        print(f"| {seed} | {a['seconds']:.1f} ({a['steps']}) | {b['seconds']:.1f} ({b['steps']}) | {b['seconds'] / a['seconds']:.2f} |")
    mine, theirs = (statistics.median(k[x]["seconds"] for k in r["seeds"].values()) for x in ("ours", "torch"))
    print(f"\nmedians {mine:.1f} s and {theirs:.1f} s: faster by {theirs / mine:.2f}, aim 2.5; {r['when']}, {r['commit']}, " + "; ".join(k["says"] for k in r["seeds"].values()))


# ---- tuning, history, pictures ---------------------------------------------------------------------------------------------------

def tune(name, words):
    """The row's settings with each word added, or taken away where they have it."""
    s, base = STEPS[name], [w for w in SETTINGS[name].split(",") if w]
    variants = {"as they are": base}
    for word in words:
        sign = "without" if word in base else "with"
        variants[f"{sign} {word}"] = [w for w in base if w != word] if word in base else base + word.split("+")
    kinds = {k: (lambda v=v: peer_step(s, ",".join(v), steps=s.steps, warm=s.warm)) for k, v in variants.items()}
    turns = Turns(BUILD, kinds, args.rounds or 3)
    print(f"\n## PyTorch's settings for {name}: {SETTINGS[name]}\n\n| | ms a step | slower than as they are by | forward, backward, optimizer | MB |\n|---|---|---|---|---|")
    ms = {k: [statistics.median(v["ms"]) for v in r] for k, r in turns.result.items()}
    for k, r in turns.result.items():
        parts = ", ".join(f"{statistics.median(v['parts'][p] for v in r):.2f}" for p in ("forward", "backward", "optimizer"))
        print(f"| {k} | {spread(ms[k])} | {spread(a / b for a, b in zip(ms[k], ms['as they are']))} | {parts} | {max(v['hwm_mb'] for v in r):.0f} |")
    print(f"\n{turns.says()}")


def ratio_of(row):
    """What the history and the picture have of a row: {name: (ratio, aim)}"""
    r = stored(row)
    if not r:
        return {}
    if row in STEPS:
        return {row: (statistics.median(ratios(r, better(r))), STEPS[row].aim)}
    if row == "allreduce":
        found = {}
        for size, us in r["us"].items():
            m = {k: statistics.median(v) for k, v in us.items()}
            mpi, arena, private = (min(m[w + ", bound"], m[w + ", yielding"]) for w in ("mpi", "arena", "private"))
            kb = int(size) >> 10
            found.update({f"allreduce-{kb}KB": (mpi / arena, 1), f"allreduce-{kb}KB-private": (mpi / private, 1)})
        return found
    if row == "start":
        return {f"start-{k}": (statistics.median(a / b for a, b in zip(v, r["ms"]["ours"])), 20) for k, v in r["ms"].items() if k != "ours"}
    if row == "memory":
        of = {n: {x: held(v, STEPS[n].ranks) for x, v in k.items()} for n, k in r["mb"].items()}
        return {f"memory-{n}": (min(k[x] for x in ("torch", "debian") if x in k) / min(k["eager"], k["captured"]), 2) for n, k in of.items()}
    mine, theirs = (statistics.median(k[x]["seconds"] for k in r["seeds"].values()) for x in ("ours", "torch"))
    return {"accuracy": (theirs / mine, 2.5)}


def history():
    return list(csv.DictReader(open(HISTORY))) if HISTORY.exists() else []


def change(name, ratio, where):
    last = [h for h in history() if h["row"] == name and h["machine"] == where]
    return f"{100 * (ratio / float(last[-1]['ratio']) - 1):+.1f} % since {last[-1]['commit']}" if last else ""


def record(rows):
    new = not HISTORY.exists()
    with open(HISTORY, "a", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        if new:
            table.writerow(["date", "commit", "row", "ratio", "calibration", "machine"])
        for row in rows:
            r = stored(row)
            for name, (ratio, _) in ratio_of(row).items():
                table.writerow([r["when"][:10], r["commit"], name, f"{ratio:.3f}", f"{r.get('calibration', [0, 0])[1]:.0f}", r["machine"]])


def plots():
    """Bars of what we are faster by, a mark where the aim is."""
    folder = ROOT / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for name, title, rows in (("steps", "times faster than PyTorch", [*STEPS, "accuracy"]), ("memory", "PyTorch's peak memory of a rank over ours", ["memory"])):
        found = [(k, *v) for row in rows for k, v in ratio_of(row).items()]
        if not found:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".dat") as data:
            data.writelines(f'"{k.removeprefix("memory-")}" {a} {b}\n' for k, a, b in found)
            data.flush()
            script = f"""set terminal svg size 760,360 font "sans,12" background "white"
set output "{folder / (name + '.svg')}"
set title "{title}"
set style fill solid 0.8
set boxwidth 0.6
set yrange [0:*]
set grid ytics
set key top right
plot "{data.name}" using 0:2:xtic(1) with boxes lc rgb "#3465a4" title "measured", "" using 0:3 with points pt 9 ps 1.2 lc rgb "#cc0000" title "aim", \\
  "" using 0:($2+0.08):(sprintf("%.2f", $2)) with labels notitle, 1 with lines lc rgb "black" notitle
"""
            subprocess.run(["gnuplot"], input=script, text=True, check=True)


def tables(rows):
    steps_table([r for r in rows if r in STEPS])
    for row, show in (("allreduce", allreduce_table), ("start", start_table), ("memory", memory_table), ("accuracy", accuracy_table)):
        if row in rows:
            show()
    names = {name: value for row in rows if row not in STEPS for name, value in ratio_of(row).items()}
    changed = {n: change(n, v[0], machine()) for n, v in names.items()}
    if any(changed.values()):
        print("\nchanges: " + ", ".join(f"{n} {c}" for n, c in changed.items() if c))


def publish(rows):
    """The tables into docs/benchmarks.md, between its two marks."""
    page, text = ROOT / "docs" / "benchmarks.md", io.StringIO()
    with contextlib.redirect_stdout(text):
        tables(rows)
    begin, end = "<!-- bench/peers/run table -->\n", "<!-- end -->\n"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text.getvalue() + "\n" + end + rest.split(end, 1)[1])


def main():
    known = [*STEPS, *OTHERS]
    if args.rows[:1] == ["tune"] and len(args.rows) > 1 and args.rows[1] in STEPS:
        return tune(args.rows[1], args.rows[2:])
    if args.rows[:1] == ["check"]:
        for name in args.rows[1:] or STEPS:
            print(f"{name}: ", end="", flush=True)
            check(name, STEPS[name])
        return None
    if args.rows == ["plots"]:
        publish(known)
        return plots()
    if args.rows == ["table"]:
        tables(known)
        return record(known) if args.record else None
    unknown = [r for r in args.rows if r not in known]
    if unknown:
        sys.exit(f"bench/peers/run: expected {', '.join(known)}, tune ROW, table or plots, got '{unknown[0]}'")
    rows = args.rows or known
    for row in rows:
        step_row(row) if row in STEPS else {"allreduce": allreduce, "start": start, "memory": memory, "accuracy": accuracy}[row]()
        tables([row])
    if len(rows) > 1:
        print("\n## All of it")
        tables(rows)
    if args.record:
        record(rows)


main()
