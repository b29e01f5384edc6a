#!/usr/bin/env bash
# tests/fuzz/run.sh safetensors|npy|npz|shards|train_state [SECONDS]: libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer on fuzz_NAME.c, 600 s by
# default. Needs clang; no part of ./check, which only replays tests/fuzz/corpus/. The rooms that parse and own memory (base, tensor, io) are
# compiled by clang with the sanitizers; the rest, kernels among it, comes from a normal tree, build-fuzz/. New inputs gather in
# build-fuzz/NAME (small ones go into the corpus by hand); what crashes is kept as build-fuzz/NAME-crash-….
set -euo pipefail
name=${1:?usage: tests/fuzz/run.sh safetensors|npy|npz|shards|train_state [SECONDS]}
seconds=${2:-600}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=${FUZZ_BUILD:-$root/build-fuzz}
[ -e "$root/tests/fuzz/fuzz_$name.c" ] || { echo "there is no tests/fuzz/fuzz_$name.c"; exit 2; }
[ -e "$build/build.ninja" ] || meson setup "$build" "$root" --buildtype=release
rooms="io ddp nn optim data comm autograd tensor base"
archives=""
for room in $rooms; do archives="$archives $room/libtd_$room.a"; done
# shellcheck disable=SC2086
ninja -C "$build" $archives
include="-I $root/include"
for room in $rooms; do include="$include -I $root/$room"; done
blas=$(dirname "$(find /usr/lib/*/openblas-openmp -name libopenblas.so | head -n 1)")
cd "$build"
# shellcheck disable=SC2086
clang -g -O1 -std=gnu11 -D_GNU_SOURCE -DTD_VERSION='"fuzz"' -D__SANITIZE_ADDRESS__=1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined $include \
    -o "fuzz_$name" "$root/tests/fuzz/fuzz_$name.c" "$root"/io/*.c "$root"/base/*.c "$root"/tensor/*.c \
    -Wl,--start-group $archives -Wl,--end-group -L "$blas" -Wl,-rpath,"$blas" \
    -lopenblas -lgomp -ldw -lsodium -lz -ljansson -lzip -lm -ldl -lpthread
mkdir -p "$name"
exec "./fuzz_$name" "$name" "$root/tests/fuzz/corpus/$name" -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=1024 \
    -artifact_prefix="$name-crash-" -print_final_stats=1
