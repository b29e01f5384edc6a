#!/bin/bash
# libtandem.so exports exactly the functions that include/ declares with TD_API, no td__ name, and needs neither MPI nor CUDA nor
# a C++ runtime. The same for the MPI plug-in where it was built: its two entry points only.
set -u
: "${SOURCE:?}" "${BUILD:?}" "${CC:=cc}"
failed=0
fail() { echo "FAILED: $*"; failed=$((failed + 1)); }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
lib=$BUILD/libtandem.so
[ -e "$lib" ] || { echo "FAILED: $lib is missing"; exit 1; }

# declarations: the preprocessor expands the headers with TD_API turned into a mark; a name is the last word before the first bracket
cp -r "$SOURCE/include" "$work/include"
sed -i -E 's/^#define TD_API .*/#define TD_API TD_API_MARK/' "$work/include/tandem/error.h"
sed -i '/tandem\/mpi.h/d' "$work/include/tandem.h"
"$CC" -E -P -I "$work/include" "$work/include/tandem.h" | tr '\n' ' ' | sed 's/TD_API_MARK/\n&/g' |
    sed -nE '/^TD_API_MARK/{ s/^TD_API_MARK ([^(;]*[^A-Za-z0-9_])?([A-Za-z_][A-Za-z0-9_]*) *[(;].*/\2/p }' | sort -u > "$work/declared"
nm -D --defined-only "$lib" | awk '{ print $3 }' | sed 's/@.*//' | sort -u > "$work/exported"
[ "$(wc -l < "$work/declared")" -gt 100 ] || fail "only $(wc -l < "$work/declared") declarations were found: this test reads the headers wrongly"

while read -r name; do fail "declared, not exported: $name"; done < <(comm -23 "$work/declared" "$work/exported")
while read -r name; do fail "exported, not declared: $name"; done < <(comm -13 "$work/declared" "$work/exported")
if grep -q '^td__' "$work/exported"; then fail "an internal name is exported: $(grep '^td__' "$work/exported" | head -n 3 | xargs)"; fi

needed() { readelf -d "$1" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p'; }
unwanted=$(needed "$lib" | grep -E 'mpi|cuda|cublas|nccl|stdc\+\+|libuv|hwloc')
[ -z "$unwanted" ] || fail "libtandem.so needs $unwanted"
echo "$(wc -l < "$work/exported") functions; needs $(needed "$lib" | xargs)"

# another language's binding opens the library while it runs: no thread-local storage that only start-up can give
cat > "$work/open.c" <<'C'
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library)
        puts(dlerror());
    return !library || !dlsym(library, "td_init");
}
C
"$CC" -o "$work/open" "$work/open.c" -ldl && said=$("$work/open" "$lib") || fail "dlopen: ${said:-the program does not build}"

plugin=$BUILD/plugins/mpi/libtandem-mpi.so
if [ -e "$plugin" ]; then
    got=$(nm -D --defined-only "$plugin" | awk '{ print $3 }' | sed 's/@.*//' | sort | xargs)
    [ "$got" = "td_init_mpi td_plugin_v1" ] || fail "libtandem-mpi.so exports: $got"
fi
plugin=$BUILD/plugins/cuda/libtandem-cuda.so
if [ -e "$plugin" ]; then
    got=$(nm -D --defined-only "$plugin" | awk '{ print $3 }' | sed 's/@.*//' | sort | xargs)
    [ "$got" = "td_plugin_v1" ] || fail "libtandem-cuda.so exports: $got"
    unwanted=$(needed "$plugin" | grep -E 'libcuda\.so|stdc\+\+|mpi|nccl')
    [ -z "$unwanted" ] || fail "libtandem-cuda.so needs $unwanted"
fi
[ $failed -eq 0 ] || exit 1
echo ok
