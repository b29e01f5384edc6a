#!/bin/bash
# Wrong use is one sentence on stderr and exit 2; help, version, doctor and env say what they must.
. "$(dirname "$0")/lib.sh"
here=$(dirname "$0")

# wrong CODE SENTENCE ARGS…
wrong()
{
    local code=$1 sentence=$2; shift 2
    "$TANDEM" "$@" > "$work/out" 2> "$work/err"
    check "tandem $*: exit code" "$code" $?
    check "tandem $*: sentence" "$sentence" "$(cat "$work/err")"
    check "tandem $*: nothing on stdout" "" "$(cat "$work/out")"
}
wrong 2 'tandem: a subcommand is missing (see `tandem help`)'
wrong 2 'tandem: there is no subcommand "rum" (see `tandem help`)' rum
wrong 2 'tandem: there is no option "--what" (see `tandem help`)' --what
wrong 2 'tandem: there is no subcommand "rum" (see `tandem help`)' help rum
wrong 2 'tandem run: say how many ranks: -n N (see `tandem help run`)' run
wrong 2 'tandem run: say how many ranks: -n N (see `tandem help run`)' run true
wrong 2 'tandem run: say which program to run, after the options (see `tandem help run`)' run -n 2
wrong 2 'tandem run: -n needs a value (see `tandem help run`)' run -n
wrong 2 'tandem run: -n is "0": expected a number of ranks from 1 to 4096 (see `tandem help run`)' run -n 0 true
wrong 2 'tandem run: -n is "two": expected a number of ranks from 1 to 4096 (see `tandem help run`)' run -n two true
wrong 2 'tandem run: --nproc-per-node is "9999999999": expected a number of ranks from 1 to 4096, auto, gpu or cpu (see `tandem help run`)' run --nproc-per-node=9999999999 true
wrong 2 'tandem run: --threads is "x": expected a number of threads per rank (see `tandem help run`)' run -n 2 --threads x true
wrong 2 'tandem run: --timeout-kill is "-1": expected seconds between SIGTERM and SIGKILL (see `tandem help run`)' run -n 2 --timeout-kill -1 true
wrong 2 'tandem run: there is no option "--fast" (see `tandem help run`)' run -n 2 --fast true
wrong 2 'tandem env: unexpected argument "x" (see `tandem help env`)' env x
wrong 2 'tandem doctor: unexpected argument "x" (see `tandem help doctor`)' doctor x
wrong 127 'tandem run: there is no program "no-such-program" in PATH' run -n 2 no-such-program
wrong 127 "tandem run: there is no program \"$work/nothing\"" run -n 2 "$work/nothing"
wrong 126 "tandem run: \"$work\" cannot be executed: it is a folder" run -n 2 "$work"
: > "$work/data"
wrong 126 "tandem run: \"$work/data\" cannot be executed: it lacks the permission (chmod +x)" run -n 2 "$work/data"
printf 'no program\n' > "$work/text"; chmod +x "$work/text"
wrong 126 "tandem run: rank 0 cannot be started: \"$work/text\": Exec format error" run -n 2 "$work/text"

for page in "help" "help run" "help doctor" "help env" "--version"; do
    # shellcheck disable=SC2086
    "$TANDEM" $page > "$work/page"
    check "tandem $page: exit code" 0 $?
    name=$(echo "$page" | tr -d ' -')
    check "tandem $page: text" "$(cat "$here/golden/$name.txt")" "$(sed 's/[0-9]*\.[0-9]*\.[0-9]*/VERSION/' "$work/page")"
done
check "run --help is help run" "$("$TANDEM" help run)" "$("$TANDEM" run --help)"
check "--help is help" "$("$TANDEM" help)" "$("$TANDEM" --help)"

# doctor: one line per thing, in this order, whatever this machine has
"$TANDEM" doctor > "$work/page"
check "doctor: exit code" 0 $?
check "doctor: rows" "cores,BLAS,memory,shared memory,black boxes,mpirun,MPI plug-in,CUDA,NCCL" \
    "$(sed -nE 's/^(ok|missing:) +(MPI plug-in|shared memory|black boxes|[A-Za-z]+) .*/\2/p' "$work/page" | paste -sd,)"
check "doctor: verdict" "Training on the CPU works here." "$(tail -n 1 "$work/page")"
check "doctor: a missing thing has a hint" "" "$(grep '^missing:' "$work/page" | grep -vE '^missing: +[A-Za-z -]+ +[^ ].{10,}' || true)"
if (ulimit -v 1500000; "$TANDEM" --version) > /dev/null 2>&1; then      # sanitizers reserve more than that
    (ulimit -v 1500000; "$TANDEM" doctor > "$work/page")
    check "doctor, little memory: exit code" 1 $?
    check_like "doctor, little memory" '^missing: memory .*ulimit -v' "$(cat "$work/page")"
fi
check_like "doctor, no folder" '^missing: black boxes .*TANDEM_RUNTIME_DIR' "$(TANDEM_RUNTIME_DIR=/proc/nothing "$TANDEM" doctor)"

TANDEM_QUIET=1 TANDEM_SECRET=hidden "$TANDEM" env > "$work/page"
check "env: exit code" 0 $?
check_like "env: a value" '^TANDEM_QUIET +1 +0 ' "$(cat "$work/page")"
check_like "env: an unset one" '^TANDEM_COMM +- +auto ' "$(cat "$work/page")"
check "env: the secret is not shown" 0 "$(grep -c hidden "$work/page")"
check "env: every variable of base's table" "$(sed -nE 's/^ *X\([A-Z_]+, "(TANDEM_[A-Z_]+)".*/\1/p' "$here/../../base/base.h" | sort | paste -sd,)" \
    "$(sed -n 's/^\(TANDEM_[A-Z_]*\) .*/\1/p' "$work/page" | sort | paste -sd,)"
# the user's key: made once, for its owner alone, never overwritten
export TANDEM_KEY_FILE=$work/keys/key
made=$("$TANDEM" env --make-key)
check "env --make-key: exit code" 0 $?
check_like "env --make-key: says where" "^made $TANDEM_KEY_FILE; copy it" "$made"
check "env --make-key: permissions" 600 "$(stat -c %a "$TANDEM_KEY_FILE")"
check_like "env --make-key: 64 digits" '^[0-9a-f]{64}$' "$(cat "$TANDEM_KEY_FILE")"
before=$(cat "$TANDEM_KEY_FILE")
wrong 1 "tandem env: $TANDEM_KEY_FILE is there already and stays as it is" env --make-key
check "env --make-key: it stays" "$before" "$(cat "$TANDEM_KEY_FILE")"
check "env --make-key: nothing else is left" key "$(ls "$work/keys")"

finish
