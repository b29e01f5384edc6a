#!/usr/bin/env bash
# 07_bert from its command line: hidden tokens, then fine-tuning of the exported folder, whole and frozen; wrong options are one sentence.
#     bert.sh BERT [TANDEM RANKS]
set -u
bert=$(realpath "$1")                      # meson's are relative to where it stands
run=("$bert")
[ $# -ge 3 ] && run=("$(realpath "$2")" run -n "$3" "$bert")
export OMP_NUM_THREADS=1
here=$(mktemp -d) || exit 1
trap 'rm -rf "$here"' EXIT
cd "$here" || exit 1
failed=0
fail() { echo "FAILED: $*"; failed=1; }
mkdir data
# two kinds of sentences that share their words: the kind is the order of the two that differ
awk 'BEGIN {
    for (i = 0; i < 480; i++) {
        a = (i * 7919) % 13; b = (i * 104729) % 11; s = i % 3 == 0
        line = (s ? "backward" : "forward") "\tItem " a " goes " (s ? "down then up" : "up then down") ", item" b "s rest."
        print line > (i % 6 == 5 ? "data/valid.tsv" : "data/train.tsv")
    }
}'
small=(--layers 2 --width 32 --heads 2 --vocab 120 --length 20 --batch 8 --lr 3e-3)
"${run[@]}" "${small[@]}" --masked-lm --epochs 2 --export base > base.out 2>&1 || { cat base.out; fail "masked tokens"; }
grep -q "of the hidden tokens named" base.out || fail "no word of hidden tokens"
"${run[@]}" --model base --length 20 --batch 8 --lr 3e-3 --epochs 6 > fine.out 2>&1 || { cat fine.out; fail "fine-tuning"; }
grep -q "drawn at random: pooler, classifier" fine.out || fail "the new parts are not named"
awk '/accuracy/ { for (i = 1; i < NF; i++) if ($i == "accuracy") got = $(i + 1) + 0 } END { exit !(got > 0.95) }' fine.out || { cat fine.out; fail "it does not learn"; }
"${run[@]}" --model base --length 20 --batch 8 --freeze --epochs 1 --save frozen > frozen.out 2>&1 || { cat frozen.out; fail "frozen"; }
"${run[@]}" --model base --length 20 --batch 8 --freeze --epochs 1 --steps 1 --lr 0 --save other > frozen.out 2>&1 || { cat frozen.out; fail "frozen"; }
cmp -s frozen other && fail "nothing has learnt"

# to step 7 at once; to step 4 of an epoch of 50, and on
again=("${run[@]}" "${small[@]}" --dropout 0.2 --epochs 1)
"${again[@]}" --steps 7 --save whole > log 2>&1 && "${again[@]}" --steps 4 --save half > log 2>&1 &&
    "${again[@]}" --steps 7 --resume half.state --save resumed > log 2>&1 || { cat log; fail "resuming"; }
cmp -s whole half && fail "steps 5 to 7 have changed nothing"
cmp whole resumed || fail "weights differ after --resume"
cmp whole.state resumed.state || fail "states differ after --resume"

# N replays leave the weights that N calls of the step leave
for task in "" --masked-lm; do
    # shellcheck disable=SC2086
    "${again[@]}" $task --pad --steps 7 --save called > log 2>&1 && "${again[@]}" $task --capture --steps 7 --save replayed > log 2>&1 || { cat log; fail "--capture $task"; }
    grep -q -- "--capture: 6 steps were replays" log || { cat log; fail "nothing was replayed"; }
    cmp called replayed || fail "weights differ after --capture $task"
done

sentence() {                               # CODE TEXT COMMAND…
    local code=$1 text=$2 said rc
    shift 2
    said=$("$@" 2>&1)
    rc=$?
    [ $rc -eq "$code" ] && grep -qF -- "$text" <<< "$said" || fail "expected $code and \"$text\", got $rc and \"$said\""
}
if [ ${#run[@]} -eq 1 ]; then
    sentence 2 'bert: --batch is "many", expected a whole number from 1' "$bert" --batch many
    sentence 2 'bert: --heads is 3, expected a divisor of --width 128' "$bert" --heads 3
    sentence 2 '--freeze and --masked-lm exclude each other' "$bert" --freeze --masked-lm
    sentence 1 'bert: nowhere/train.tsv: No such file' "$bert" --data nowhere
    sentence 1 'bert: nowhere/vocab.txt: No such file' "$bert" --model nowhere
    sentence 1 '--length is more than the model has positions' "$bert" --model base --length 64
    sentence 1 'a vocabulary of 9 pieces is too small' "$bert" --vocab 9
    echo "no tab here" >> data/valid.tsv
    sentence 1 'data/valid.tsv: line 81 is no label, tab and text' "$bert"
    sentence 0 '--resume FILE' "$bert" --help
fi
[ $failed -eq 0 ] && echo ok
exit $failed
