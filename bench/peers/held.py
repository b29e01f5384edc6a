"""bench/peers/held.py: what processes hold while they run, looked at from outside, the same way for everybody's programs.

VmHWM counts a page that two ranks use in both; a program reads it itself at its end. Pss counts it by halves, so the sum over the ranks is what the
machine spends, but the kernel keeps no peak of it: here it is sampled, and what stands between two looks is not seen.
"""
import pathlib
import threading
import time

EVERY = 0.005                   # seconds between two looks; one takes a ms for each 100 MB


def family(pid):
    """pid and all below it."""
    found = [pid]
    for p in found:
        for path in pathlib.Path(f"/proc/{p}/task").glob("*/children"):
            try:
                found += [int(c) for c in path.read_text().split()]
            except OSError:     # gone meanwhile
                pass
    return found


def pss(pid):
    """MB; None: it has gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next((int(line.split()[1]) * 1024 / 1e6 for line in f if line.startswith("Pss:")), None)
    except OSError:
        return None


class Watch(threading.Thread):
    """From start() to end(): `most` is what those processes and all that they start held together, at their most, in MB; `looks`: how many. (Of one rank
    alone it would say little: a page goes over to the others when the first one ends.)"""

    def __init__(self, processes):
        super().__init__(daemon=True)
        self.pids, self.over = [p.pid for p in processes], threading.Event()
        self.most, self.looks = 0.0, 0

    def run(self):
        known, asked = [], 0.0
        while not self.over.wait(EVERY):
            if time.monotonic() > asked + 0.2:
                known, asked = sorted({q for p in self.pids for q in family(p)}), time.monotonic()
            held = [mb for mb in map(pss, known) if mb is not None]
            if held:
                self.most, self.looks = max(self.most, sum(held)), self.looks + 1

    def end(self):
        self.over.set()
        self.join()
        return self
