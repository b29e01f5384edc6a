#!/usr/bin/env bash
# A job that was saved in mid-epoch and resumed ends with the same bytes as one that never stopped: `resume.sh HALF WHOLE COMMAND…` runs
# COMMAND with --steps, --save and --resume added: to step WHOLE at once; to step HALF, and on to WHOLE. The program's --save FILE writes
# the weights to FILE and the training state to FILE.state.
set -euo pipefail
half=$1 whole=$2
shift 2
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"$@" --steps "$whole" --save "$where/whole" >"$where/log" || { cat "$where/log"; exit 1; }
"$@" --steps "$half" --save "$where/half" >"$where/log" || { cat "$where/log"; exit 1; }
"$@" --steps "$whole" --resume "$where/half.state" --save "$where/resumed" >"$where/log" || { cat "$where/log"; exit 1; }
if cmp -s "$where/whole" "$where/half"; then
    echo "resume: steps $half to $whole have changed nothing"
    exit 1
fi
cmp "$where/whole" "$where/resumed"
cmp "$where/whole.state" "$where/resumed.state"
