#!/bin/sh
# told.sh MPIRUN PROGRAM FAULT SENTENCE...: under mpirun and MPI (or BACKEND), rank 1 misbehaves; rank 0 prints a line with all the sentences in time.
mpirun=$1 program=$2 fault=$3
shift 3
TANDEM_RUNTIME_DIR=$(mktemp -d) && export TANDEM_RUNTIME_DIR
trap 'rm -rf "$TANDEM_RUNTIME_DIR"' EXIT
out=$("$mpirun" -q --timeout 20 --oversubscribe --bind-to none -np 3 "$program" "${BACKEND:-mpi}" "$fault" 2>&1)
for part in "$@"; do
    if ! printf '%s\n' "$out" | grep -E '^code -[0-9]+ after [01]\.' | grep -qF -- "$part"; then
        printf 'no line in time with "%s" in:\n%s\n' "$part" "$out"
        exit 1
    fi
done
