#!/usr/bin/env bash
# Interrupted twice, by SIGUSR1 and by SIGTERM, a job ends with the same bytes as one that never was: `requeue.sh COMMAND…` runs COMMAND with --steps, --state,
# --weights and --pause added; each interruption must end it with status 75.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
fail() { echo "requeue: $*"; cat "$where/log"; exit 1; }
"$@" --steps 60 --state "$where/whole.state" --weights "$where/whole" > "$where/log" 2>&1 || fail "undisturbed, the job ends with $?"
for signal in USR1 TERM; do
    # 60 steps of 100 ms: the signal comes in the midst of them
    "$@" --steps 60 --state "$where/state" --weights "$where/weights" --pause 100 > "$where/log" 2>&1 &
    job=$!
    sleep 1.5
    kill -"$signal" "$job"
    status=0
    wait "$job" || status=$?
    [ "$status" = 75 ] || fail "SIG$signal ends the job with $status instead of 75"
    [ -s "$where/state" ] && [ ! -e "$where/weights" ] || fail "SIG$signal: no state, or weights already"
    [ -e "$where/first" ] || cp "$where/state" "$where/first"
done
cmp -s "$where/first" "$where/state" && fail "the second start has done nothing"
"$@" --steps 60 --state "$where/state" --weights "$where/weights" > "$where/log" 2>&1 || fail "the last start ends with $?"
cmp "$where/whole" "$where/weights"
