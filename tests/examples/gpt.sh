#!/bin/bash
# 05_gpt from its command line: it learns, an interrupted run that goes on gives the same bits as one that was not interrupted, shards
# of ids are the text they were made from, generation depends on the seed alone, and wrong options are one sentence.
#     gpt.sh GPT GPT_GENERATE [TANDEM RANKS]
set -u
gpt=$(realpath "$1") generate=$(realpath "$2")        # the tests' folder is left below
run=("$gpt")
[ $# -ge 4 ] && run=("$(realpath "$3")" run -n "$4" "$gpt")
export OMP_NUM_THREADS=1
here=$(mktemp -d) || exit 1
trap 'rm -rf "$here"' EXIT
cd "$here" || exit 1
failed=0
fail() { echo "FAILED: $*"; failed=1; }

seq 1 4000 > text
options=(--data text --layers 2 --heads 2 --width 32 --context 32 --batch 4 --accumulate 2 --dropout 0.1 --lr 3e-3 --every 5 --valid-batches 3)

"${run[@]}" "${options[@]}" --steps 16 --log whole.log --save whole > whole.out 2>&1 || { cat whole.out; fail "the whole run"; }
grep -q "validation loss" whole.out || fail "no validation loss"
grep -q "% of the matrix peak" whole.out || fail "no share of the peak"
awk 'NR == 1 { first = $2 } { last = $2 } END { exit !(NR == 16 && first > 5.3 && first < 5.8 && last < 0.8 * first) }' whole.log ||
    { cat whole.log; fail "it does not learn"; }

"${run[@]}" "${options[@]}" --steps 16 --stop 7 --log part.log --save part > part.out 2>&1 || { cat part.out; fail "the first part"; }
"${run[@]}" "${options[@]}" --steps 16 --resume part.state --log part.log --save rest > rest.out 2>&1 || { cat rest.out; fail "the rest"; }
cmp whole rest || fail "weights differ after --resume"
cmp whole.log part.log || { diff whole.log part.log; fail "losses differ after --resume"; }

if [ ${#run[@]} -eq 1 ]; then
    # the same with 16 bits, a loss scaler and blocks computed twice
    low=("${options[@]}" --steps 8 --amp f16 --checkpointing)
    "$gpt" "${low[@]}" --save low > low.out 2>&1 && "$gpt" "${low[@]}" --stop 3 --save low3 > low.out 2>&1 &&
        "$gpt" "${low[@]}" --resume low3.state --save low8 > low.out 2>&1 || { cat low.out; fail "--amp f16 --checkpointing"; }
    cmp low low8 || fail "weights differ after --resume with f16"
    "$gpt" "${options[@]}" --steps 8 --amp f16 --save high > high.out 2>&1 || { cat high.out; fail "--amp f16"; }
    cmp low high || fail "--checkpointing changes the weights"

    # the same tokens as 16-bit ids
    od -An -v -tu1 -w1 text | awk '{ printf "\\x%02x\\x00", $1 }' > escaped
    printf "$(cat escaped)" > text.bin
    "${run[@]}" "${options[@]}" --data text.bin --vocab 256 --steps 16 --save bin > bin.out 2>&1 || { cat bin.out; fail "shards"; }
    cmp whole bin || fail "ids give other weights than the text"

    ids=(--load whole --prompt 12 --count 60 --top-k 5)
    "$generate" "${ids[@]}" --seed 1 > a && "$generate" "${ids[@]}" --seed 1 > b && "$generate" "${ids[@]}" --seed 2 > c || fail "generate"
    cmp a b || fail "the same seed gives another text"
    cmp -s a c && fail "another seed gives the same text"
    [ "$(head -c 2 a)" = 12 ] && [ "$(wc -c < a)" -eq 63 ] || fail "not prompt, 60 bytes and a line feed: $(cat a)"
    "$generate" --load whole --temperature 0 --count 20 > a && "$generate" --load whole --top-k 1 --seed 9 --count 20 > b || fail "generate"
    cmp a b || fail "the most likely token is not that of --top-k 1"

    sentence() {                               # CODE TEXT COMMAND…
        local code=$1 text=$2 said
        shift 2
        said=$("$@" 2>&1)
        local rc=$?
        [ $rc -eq "$code" ] && grep -qF -- "$text" <<< "$said" || fail "expected $code and \"$text\", got $rc and \"$said\""
    }
    sentence 2 'gpt: --steps is "many", expected a whole number of 1 or more' "$gpt" --steps many
    sentence 2 'gpt: --amp is "f8", expected bf16 or f16' "$gpt" --amp f8
    sentence 2 'gpt: --model is "huge", expected 124M, 355M' "$gpt" --model huge
    sentence 2 'heads must divide width' "$gpt" "${options[@]}" --heads 5
    sentence 2 'gpt_generate: --load says which weights' "$generate"
    sentence 0 '--temperature X' "$generate" --help
    sentence 0 '--resume FILE' "$gpt" --help
fi
[ $failed -eq 0 ] && echo ok
exit $failed
