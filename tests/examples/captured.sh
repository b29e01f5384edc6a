#!/usr/bin/env bash
# captured.sh TANDEM PROGRAM OPTIONS…: on 1 and on 2 ranks, PROGRAM with --capture leaves the same weights, bit for bit, as without, and has replayed its
# step. OPTION: the option that takes the weights' file (default --save); RUN: what stands for "TANDEM run -n" (mpirun); RANKS: the numbers of ranks.
set -euo pipefail
read -ra run <<< "${RUN:-$(realpath "$1") run --no-prefix -n}"
program=$(realpath "$2")
shift 2
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
export OMP_NUM_THREADS=1
one() {                                    # FOLDER RANKS OPTIONS…: in a folder of its own
    local folder=$where/$1 ranks=$2
    shift 2
    rm -rf "$folder"
    mkdir "$folder"
    cd "$folder"
    "${run[@]}" "$ranks" "$program" "$@" "${OPTION:---save}" weights > log 2>&1 || { cat log; exit 1; }
}
for ranks in ${RANKS:-1 2}; do
    one called "$ranks" "$@"
    one replayed "$ranks" "$@" --capture
    grep -- "--capture: [1-9][0-9]* steps were replays" log || { cat log; echo "$ranks ranks: nothing was replayed"; exit 1; }
    cmp ../called/weights weights
done
