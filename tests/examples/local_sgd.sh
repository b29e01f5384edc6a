#!/usr/bin/env bash
# local_sgd.sh TANDEM PROGRAM: averaged in every step without momentum it is plain SGD on the whole batch; averaged seldom, by groups, or late it still learns.
set -eu
tandem=$1 program=$2
number() { awk -v name="$1" '$0 ~ "^" name { print $NF }'; }

ranks=$("$tandem" run -n 2 --no-prefix "$program" --outer 1 --momentum 0 --steps 15 --batch 64 | number "weights squared")
alone=$("$program" --outer 1 --momentum 0 --steps 15 --batch 128 | number "weights squared")
echo "weights squared: $ranks on 2 ranks, $alone alone"
awk -v a="$ranks" -v b="$alone" 'BEGIN { exit !(a > 0 && (a - b) ^ 2 < (1e-6 * b) ^ 2) }'

for how in "--outer 8 --inner 4" "--outer 8 --delay 3"; do
    # shellcheck disable=SC2086
    out=$("$tandem" run -n 3 --no-prefix "$program" $how --steps 80)
    accuracy=$(echo "$out" | number "test accuracy")
    echo "$how: $accuracy"
    awk -v a="$accuracy" 'BEGIN { exit !(a > 0.55) }'
done
echo "$out" | grep -q "11 averages over all"
