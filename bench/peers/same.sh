#!/bin/sh
# bench/peers/same.sh BUILD: the programs of bench/peers/run work, and a captured step gives the losses of an eager one, dropout included
set -eu
export OMP_NUM_THREADS=1 TANDEM_DEVICE=cpu
losses() { "$@" | sed -n 's/.*"losses": \[\([^]]*\)\].*"ms": \[[0-9.]*\].*"hwm_mb": [1-9].*/\1/p'; }
for model in mlp cnn; do
    for n in 1 2; do
        eager=$(losses "$1/launcher/tandem" run -n $n --no-prefix "$1/bench/peers/ours" $model --warm 4 --steps 1)
        captured=$(losses "$1/launcher/tandem" run -n $n --no-prefix "$1/bench/peers/ours" $model --warm 4 --steps 1 --capture)
        [ "$(echo "$eager" | wc -w)" = 4 ] || { echo "$model on $n ranks: expected 4 losses, got '$eager'"; exit 1; }
        [ "$eager" = "$captured" ] || { echo "$model on $n ranks: losses $eager, captured $captured"; exit 1; }
    done
done
