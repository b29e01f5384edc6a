#!/usr/bin/env python3
"""bench/scaling/run.py: efficiency of data-parallel training on clusters that are simulated (SimGrid), from plans that are measured here.

    run.py BUILD plans           measures the plans of GPT-2 124M and ResNet-50 into docs/scaling/*.plan (a quiet machine, a minute)
    run.py BUILD check           folded rings against whole ones
    run.py BUILD curves [ALGORITHM…] simulates, all or these; docs/scaling/curves.csv
    run.py plots                 docs/scaling/*.svg and the table of docs/scaling.md's numbers, from curves.csv
    run.py BUILD one PLAN ALGORITHM HOSTS RANKS GBITS FORWARD BACKWARD OPTIMIZER [LATENCY]
                                 prints one simulated step in ms

BUILD: the build folder. Needs smpirun (SimGrid) and gnuplot. What is assumed is in CLUSTER and MODELS below and in docs/scaling.md.
"""
import csv, os, pathlib, subprocess, sys, tempfile

HERE = pathlib.Path(__file__).resolve().parent
DOCS = HERE.parent.parent / 'docs' / 'scaling'
# Eight GPUs a host, 200 GB/s between them, one link a host to a switch that is never full, 5 us from host to host.
CLUSTER = dict(ranks=8, inside=200, latency=2.5)
# Forward, backward, optimizer of one GPU in ms: assumed. GPT-2 124M: 32 rows of 1024 tokens; ResNet-50: 256 images; both in 16 bits with f32 gradients.
MODELS = {'gpt2': ('GPT-2 124M', 26, 52, 2), 'resnet50': ('ResNet-50', 30, 60, 1)}
NETWORKS = (25, 100, 400)
ALGORITHMS = ('ring', 'hier', 'halving')
NAMES = {'ring': 'flat ring', 'hier': 'hierarchical', 'halving': 'halving and doubling'}
# How far each goes: hosts simulated whole, and hosts at all. Beyond the first a ring of hosts is folded to 4, one of ranks to 2 hosts.
WHOLE = {'ring': 4, 'hier': 16, 'halving': 1024}
MOST = {'ring': 256, 'hier': 1024, 'halving': 1024}
# SMPI's own factors stand for TCP of 2010; links are as fast as they are said to be here, less 5 % for headers and
# acknowledgements (by default SimGrid takes another 5 % from the opposite direction for the latter).
OPTIONS = ['--cfg=smpi/host-speed:1Gf', '--cfg=contexts/stack-size:256', '--cfg=smpi/display-timing:yes', '--cfg=smpi/bw-factor:0:0.95',
           '--cfg=smpi/lat-factor:0:1', '--cfg=network/crosstraffic:no', '--log=root.thresh:warning', '--log=smpi_utils.thresh:info']


def simulate(build, plan, algorithm, hosts, gbits, forward, backward, optimizer, fold=0, cluster=CLUSTER):
    """One step in ms. Slices as the executor's (comm_hier_run.c) on few hosts, of all lanes together; on many a part of the data is hardly more, and larger ones
    save messages."""
    slice_bytes = 1 << 20 if hosts > 8 else 60 << 10 if algorithm == 'ring' else cluster['ranks'] * 60 << 10
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / 't'
        words = [build / 'bench/scaling/trace', plan, out, '--hosts', hosts, '--ranks', cluster['ranks'], '--algorithm', algorithm, '--gbits', gbits,
                 '--forward', forward, '--backward', backward, '--optimizer', optimizer, '--inside', cluster['inside'], '--latency', cluster['latency'],
                 '--slice', slice_bytes, '--slots', 8]
        subprocess.run([str(w) for w in words + (['--fold', fold] if fold else [])], check=True)
        n = len((out / 'index').read_text().split())
        words = ['smpirun', '-np', n, '-platform', out / 'platform.xml', '-hostfile', out / 'hosts', '-replay', out / 'index'] + OPTIONS
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
        for line in (done.stdout + done.stderr).splitlines():
            if 'Simulated time:' in line:
                return 1e3 * float(line.split('Simulated time:')[1].split()[0])
        sys.exit(f'run.py: smpirun gave no time: {(done.stdout + done.stderr)[-600:]}')


def plans(build):
    DOCS.mkdir(exist_ok=True)
    for model, rows in (('gpt2', 1), ('resnet50', 4)):
        text = subprocess.run([build / 'bench/scaling/plan', model, '--rows', str(rows), '--steps', '7'], check=True, capture_output=True, text=True).stdout
        (DOCS / f'{model}.plan').write_text(text)
        print(text, end='')


def fold_of(algorithm, hosts):
    return 0 if hosts <= WHOLE[algorithm] else 4 if algorithm == 'hier' else 2


def check(build):
    """Folding changes nothing but the rounding of parts to equal lengths."""
    worst = 0
    for algorithm, hosts, fold in (('hier', 16, 4), ('hier', 32, 4), ('hier', 32, 8), ('ring', 4, 2), ('ring', 8, 2), ('ring', 8, 4)):
        args = (build, DOCS / 'resnet50.plan', algorithm, hosts, 25, 3, 6, 1)
        whole, folded = simulate(*args), simulate(*args, fold=fold)
        worst = max(worst, abs(folded / whole - 1))
        print(f'{algorithm} on {hosts} hosts: {whole:.2f} ms, folded to {fold}: {folded:.2f} ms')
    print(f'largest difference {100 * worst:.2f} %')
    if worst > 0.04:
        sys.exit('run.py: folding changes the time')


def curves(build, algorithms):
    """Rows of other algorithms stay; a row is written as soon as it is there."""
    head = ['model', 'gbits', 'algorithm', 'hosts', 'gpus', 'step_ms', 'efficiency', 'folded_to']
    path = DOCS / 'curves.csv'
    kept = [r for r in csv.reader(open(path)) if r != head and r[2] not in algorithms] if path.exists() else []
    with open(path, 'w', newline='') as f:
        table = csv.writer(f, lineterminator='\n')
        table.writerows([head] + kept)
        for model, (_, *times) in MODELS.items():
            for gbits in NETWORKS:
                for algorithm in algorithms:
                    hosts = 2
                    while hosts <= MOST[algorithm]:
                        fold = fold_of(algorithm, hosts)
                        ms = simulate(build, DOCS / f'{model}.plan', algorithm, hosts, gbits, *times, fold=fold)
                        row = [model, gbits, algorithm, hosts, hosts * CLUSTER['ranks'], f'{ms:.2f}', f'{sum(times) / ms:.4f}', fold or hosts]
                        table.writerow(row)
                        f.flush()
                        print(*row, flush=True)
                        hosts *= 2


def plots():
    rows = list(csv.DictReader(open(DOCS / 'curves.csv')))
    for model, (title, *times) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            lines = []
            for colour, gbits in enumerate(NETWORKS, 1):
                for dash, algorithm in enumerate(ALGORITHMS, 1):
                    mine = [r for r in rows if r['model'] == model and r['gbits'] == str(gbits) and r['algorithm'] == algorithm]
                    data = pathlib.Path(folder) / f'{gbits}-{algorithm}'
                    data.write_text(''.join(f"{r['hosts']} {100 * float(r['efficiency'])}\n" for r in mine))
                    lines.append(f'"{data}" with linespoints lc {colour} dt {dash} pt {dash + 3} ps 0.6 title "{gbits} Gbit/s, {NAMES[algorithm]}"')
            script = f'''set terminal svg size 860,520 font "sans,12" background "white"
set output "{DOCS / (model + '.svg')}"
set title "{title}, simulated: share of a step that computes"
set logscale x 2
set xlabel "hosts of 8 GPUs"
set ylabel "efficiency, %"
set yrange [0:102]
set xrange [1.8:1150]
set grid ytics
set key outside right center
plot {', '.join(lines)}
'''
            subprocess.run(['gnuplot'], input=script, text=True, check=True)
    for model, (title, *times) in MODELS.items():
        shown = [2, 8, 32, 128, 256, 1024]
        print(f'\n{title}: efficiency in %\n\n| Gbit/s | algorithm | ' + ' | '.join(f'{h} hosts' for h in shown) + ' |\n|---|---|' + '---|' * len(shown))
        for gbits in NETWORKS:
            for algorithm in ALGORITHMS:
                at = {int(r['hosts']): float(r['efficiency']) for r in rows
                      if r['model'] == model and r['gbits'] == str(gbits) and r['algorithm'] == algorithm}
                print(f'| {gbits} | {NAMES[algorithm]} | ' + ' | '.join(f'{100 * at[h]:.0f}' if h in at else '–' for h in shown) + ' |')


def main():
    words = sys.argv[1:]
    if words == ['plots']:
        return plots()
    if len(words) < 2:
        sys.exit(__doc__)
    build = pathlib.Path(words[0]).resolve()
    if words[1] == 'plans':
        return plans(build)
    if words[1] == 'check':
        return check(build)
    if words[1] == 'curves':
        return curves(build, words[2:] or ALGORITHMS)
    if words[1] == 'one' and len(words) in (10, 11):
        plan, algorithm, hosts, ranks = words[2], words[3], int(words[4]), int(words[5])
        cluster = dict(CLUSTER, ranks=ranks, latency=float(words[10]) if len(words) == 11 else CLUSTER['latency'])
        return print(f'{simulate(build, plan, algorithm, hosts, *map(float, words[6:10]), cluster=cluster):.3f}')
    sys.exit(__doc__)


main()
