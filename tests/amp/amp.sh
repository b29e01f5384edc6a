#!/bin/bash
# 300 steps of 05_gpt in f32, bf16 and f16: the smoothed curves of the loss stay within 1 % of each other. amp.sh GPT
# The text is made here (numbers written out in words), so that the test needs nothing. Smoothed: the mean of the last 20 steps, which is
# compared at every step from the 20th on, relative to f32's. The curve must fall below half of its beginning, else the comparison says little.
set -u
gpt=$(realpath "$1")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
here=$(mktemp -d) || exit 1
trap 'rm -rf "$here"' EXIT
cd "$here" || exit 1
awk 'BEGIN {
    split("one two three four five six seven eight nine", digit); split("ten twenty thirty forty fifty sixty seventy eighty ninety", ten)
    seed = 7
    for (i = 0; i < 20000; i++) {
        seed = (seed * 16807) % 2147483647; n = seed % 1000
        text = ""
        if (n >= 100) text = digit[int(n / 100)] " hundred "
        if (n % 100 >= 10) text = text ten[int(n % 100 / 10)] " "
        if (n % 10) text = text digit[n % 10]
        print n ": " text
    }
}' > text
options=(--data text --layers 2 --heads 4 --width 64 --context 64 --batch 8 --steps 300 --lr 2e-3 --valid-every 0 --valid-batches 5 --every 100)
"$gpt" "${options[@]}" --log f32 || exit 1
"$gpt" "${options[@]}" --amp bf16 --log bf16 || exit 1
"$gpt" "${options[@]}" --amp f16 --log f16 || exit 1
failed=0
cmp -s f32 bf16 && { echo "FAILED: bf16 gives f32's very losses: it was not used"; failed=1; }
cmp -s f32 f16 && { echo "FAILED: f16 gives f32's very losses: it was not used"; failed=1; }
for low in bf16 f16; do
    paste -d ' ' f32 "$low" | awk -v low="$low" '
        NF != 4 || $1 != $3 || $4 !~ /^[0-9]/ { print "FAILED: line " NR ": " $0; bad = 1; exit }
        {
            a[NR] = $2; b[NR] = $4; sa += $2; sb += $4
            if (NR > 20) { sa -= a[NR - 20]; sb -= b[NR - 20] }
            if (NR == 20) first = sa
            if (NR >= 20) { d = sb / sa - 1; if (d < 0) d = -d; if (d > worst) { worst = d; at = NR } }
        }
        END {
            if (bad) exit 1
            printf "%s: smoothed loss %.4f at step %d (f32 %.4f); largest difference %.3f %% at step %d\n", low, sb / 20, NR, sa / 20, 100 * worst, at
            if (NR != 300) { print "FAILED: " NR " steps, expected 300"; exit 1 }
            if (sa > first / 2) { print "FAILED: f32 itself does not learn"; exit 1 }
            if (worst > 0.01) { print "FAILED: more than 1 %"; exit 1 }
        }' || failed=1
done
exit $failed
