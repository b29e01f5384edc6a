#!/usr/bin/python3
"""tests/faults/faults.py: one rank dies, leaves, stops or calls another collective, at a random moment.

Within 2 seconds a sentence must name the rank (for a wrong collective: both calls); the job must end within 5; then no process, socket, shared
memory or file of it may be left but the black boxes that its message names. Prints TAP. Usage:

    faults.py --tandem PATH --victim PATH [--mpirun PATH] [--kinds a,b] [--times N] [--seed N] [--grace S]

--grace: seconds that processes may take to be gone after the launcher is: 0, but on other hosts, which hear of its end a moment later.
"""
import argparse, glob, os, random, re, select, shutil, signal, subprocess, sys, tempfile, time, uuid

KINDS = ["kill", "stop", "return", "finish", "exit3", "kind", "dtype", "count", "order"]
# the calls that a sentence about a wrong collective must show: what the guilty rank called, what the others did
CALLS = {"kind": ("broadcast", "all_reduce"), "dtype": ("all_reduce(f64, 100", "all_reduce(f32, 100"),
         "count": ("all_reduce(f32, 200", "all_reduce(f32, 100"), "order": ("barrier", "all_reduce")}


def ours(tag):
    """Living processes that carry the tag in their environment."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        pid = path.split("/")[2]
        try:
            if tag.encode() in open(path, "rb").read() and open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] not in "ZX":
                found.append(int(pid))
        except OSError:
            pass
    return found


def sockets():
    """Inode and name of every abstract socket of ours."""
    with open("/proc/net/unix") as f:
        rows = [line.split() for line in f]
    return {(row[6], row[7]) for row in rows if len(row) > 7 and row[7].startswith("@tandem")}


def of_other_jobs(names):
    """Those that a living process holds: ours are gone by then, so it is another job's."""
    held = set()
    for path in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            held.add(os.readlink(path))
        except OSError:
            pass
    return {(inode, name) for inode, name in names if f"socket:[{inode}]" in held}


def run(args, ranks, kind, rng, mpi):
    """One job; None when all is well, else what is not."""
    tag, folder = "tandem-fault-" + uuid.uuid4().hex, tempfile.mkdtemp(prefix="tandem-fault-")
    boxes, stamp = os.path.join(folder, "boxes"), os.path.join(folder, "stamp")
    guilty, step, delay = rng.randrange(ranks), rng.randrange(3, 40), rng.randrange(0, 30000)
    env = dict(os.environ, TANDEM_FAULT_TAG=tag, TANDEM_RUNTIME_DIR=boxes, TANDEM_TIMEOUT="60", OMP_NUM_THREADS="1")
    job = [args.victim, kind, str(guilty), str(step), str(delay), stamp]
    if mpi:
        env.update(TANDEM_COMM="hier" if args.hosts else "mpi", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_hwloc_base_binding_policy="none", OMPI_MCA_mpi_yield_when_idle="1")
        if args.hosts:
            env["TANDEM_PRETEND_HOSTS"] = args.hosts
        command = [args.mpirun, "-q", "--timeout", "40", "-np", str(ranks)] + job
    else:
        command = [args.tandem, "run", "-n", str(ranks)] + job
    before_sockets, before_shm = sockets(), set(os.listdir("/dev/shm"))
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    lines, rest, end = [], b"", time.monotonic() + 45
    while time.monotonic() < end:
        ready, _, _ = select.select([process.stdout], [], [], 0.1)
        if ready:
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            rest += chunk
            *whole, rest = rest.split(b"\n")
            lines += [(time.monotonic(), line.decode(errors="replace")) for line in whole]
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass
    ended = time.monotonic()
    text = "\n".join(line for _, line in lines)
    try:
        struck = float(open(stamp).read())
    except (OSError, ValueError):
        struck = None

    wrong = []
    if struck is None:
        wrong.append("the fault never happened")
    else:
        named = [(t, line) for t, line in lines if re.search(rf"\brank {guilty}\b", line) and t >= struck - 0.01
                 and all(call in line for call in CALLS.get(kind, ()))]
        if not named:
            wrong.append(f"no line names rank {guilty}" + (f" and both calls {CALLS[kind]}" if kind in CALLS else ""))
        elif named[0][0] - struck > 2.0:
            wrong.append(f"the sentence came after {named[0][0] - struck:.2f} s")
        if ended - struck > 5:
            wrong.append(f"the job ended after {ended - struck:.2f} s")
    if process.poll() is None:
        wrong.append("the job did not end")
    elif process.returncode == 0:
        wrong.append("the job ended with code 0")
    time.sleep(0.05)
    left, end = ours(tag), time.monotonic() + args.grace
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = ours(tag)
    if left:
        wrong.append(f"processes left: {left}")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    new = sockets() - before_sockets
    if new - of_other_jobs(new):
        wrong.append(f"sockets left: {sorted(new - of_other_jobs(new))}")
    shm = {name for name in set(os.listdir("/dev/shm")) - before_shm if "tandem" in name}
    if shm:
        wrong.append(f"shared memory left: {sorted(shm)}")
    for box in glob.glob(boxes + "/**", recursive=True):
        name = os.path.basename(box)
        elsewhere = re.sub(r"\.\d+\.box$", ".RANK.box", name)    # how boxes of other hosts are named
        if os.path.isfile(box) and name not in text and not (args.hosts and elsewhere in text):
            wrong.append(f"a file that no message names: {os.path.basename(box)}")
    shutil.rmtree(folder, ignore_errors=True)
    where = f"rank {guilty}, step {step}, {delay} us"
    took = f"named after {named[0][0] - struck:.2f} s, ended after {ended - struck:.2f} s" if struck and named else ""
    if wrong:
        return False, where, "; ".join(wrong) + "\n" + text
    return True, where, took


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tandem", required=True)
    p.add_argument("--victim", required=True)
    p.add_argument("--mpirun")
    p.add_argument("--hosts", help="under mpirun: the host of each rank, as TANDEM_PRETEND_HOSTS has it; over hier")
    p.add_argument("--kinds", default=",".join(KINDS))
    p.add_argument("--times", type=int, default=3)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    p.add_argument("--grace", type=float, default=0)
    args = p.parse_args()
    rng = random.Random(args.seed)
    print(f"# seed {args.seed}")
    count = bad = 0
    for kind in args.kinds.split(","):
        for i in range(args.times):
            ok, where, detail = run(args, len(args.hosts.split(",")) if args.hosts else rng.choice([2, 3]), kind, rng, bool(args.mpirun))
            count += 1
            bad += not ok
            print(f"{'ok' if ok else 'not ok'} {count} - {kind} ({where}) # {detail.splitlines()[0] if detail else ''}")
            if not ok:
                print("\n".join("# " + line for line in detail.splitlines()))
            sys.stdout.flush()
    print(f"1..{count}")
    sys.exit(bad != 0)


main()
