#!/bin/bash
# Every room links alone against only the rooms it may know, and no source file of a room includes another room's header.
# This table is the house ("knows" is transitive, and written out here; docs/ARCHITECTURE.md). launcher: base only.
set -u
: "${SOURCE:?}" "${BUILD:?}" "${CC:=cc}"
declare -A knows=(
    [base]=""
    [tensor]="base"
    [autograd]="tensor base"
    [nn]="autograd tensor base"
    [optim]="autograd tensor base"
    [data]="tensor base"
    [comm]="autograd tensor base"
    [ddp]="nn comm optim autograd tensor base"
    [io]="ddp nn optim data comm autograd tensor base"
    [job]="io ddp data nn comm optim autograd tensor base"
    [launcher]="base"
)
failed=0
fail() { echo "FAILED: $*"; failed=$((failed + 1)); }

# public headers by the room that implements them
declare -A public=(
    [error]=base [scope]=base [plugin]=base [tensor]=tensor [op]=autograd [ops]=autograd [autograd]=autograd [capture]=autograd [nn]=nn
    [optim]=optim [data]=data [comm]=comm [comm_raw]=comm [ddp]=ddp [ddp_hook]=ddp [io]=io [fit]=job [job]=job [mpi]=job
)
for header in "$SOURCE"/include/tandem/*.h; do
    name=$(basename "$header" .h)
    [ -n "${public[$name]:-}" ] || fail "include/tandem/$name.h belongs to no room in this test's table"
done

allowed() { [ "$1" = "$2" ] || case " ${knows[$1]} " in *" $2 "*) true ;; *) false ;; esac }

# room_of HEADER FROM: which room a header that FROM includes belongs to; nothing for the system's
room_of()
{
    local header=$1 from=$2 room hit
    case $header in
    tandem.h) echo job; return ;;
    tandem/*.h) header=${header#tandem/}; echo "${public[${header%.h}]:-unknown}"; return ;;
    esac
    [ -e "$(dirname "$from")/$header" ] && { hit=$(cd "$(dirname "$from")" && realpath "$header"); hit=${hit#"$SOURCE"/}; echo "${hit%%/*}"; return; }
    for room in "${!knows[@]}"; do
        [ -e "$SOURCE/$room/$header" ] && { echo "$room"; return; }
    done
}

for room in "${!knows[@]}"; do
    while read -r file; do
        while read -r header; do
            from=$(room_of "$header" "$file")
            [ -z "$from" ] || allowed "$room" "$from" || fail "${file#"$SOURCE"/} includes $header, but $room may not know $from"
        done < <(sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]([^>"]+)[>"].*/\1/p' "$file")
    done < <(find "$SOURCE/$room" -name '*.[ch]')
done

# linking alone
external="-fopenmp -lm -ldl -lpthread -ldw -lsodium -lz -ljansson -lzip"
blas=$(find /usr/lib/*/openblas-openmp -name libopenblas.so 2> /dev/null | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$BUILD" || exit 1
for room in base tensor autograd nn optim data comm ddp io job; do
    archives=""
    for r in ${knows[$room]}; do archives="$archives $r/libtd_$r.a"; done
    # shellcheck disable=SC2086
    if "$CC" -shared -o "$work/lib$room.so" -Wl,--no-undefined -Wl,--whole-archive "$room/libtd_$room.a" -Wl,--no-whole-archive \
        -Wl,--start-group $archives -Wl,--end-group "$blas" $external > "$work/said" 2>&1; then
        echo "ok: $room links alone"
    else
        fail "$room does not link with only: ${knows[$room]:-(nothing)}"
        grep -oE "undefined reference to .*" "$work/said" | sort | uniq -c | head -n 20
        grep -q "undefined reference" "$work/said" || head -n 20 "$work/said"
    fi
done
[ $failed -eq 0 ] || exit 1
echo "ok: includes"
