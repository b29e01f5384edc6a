#!/bin/bash
# `meson install`, then a program that knows only pkg-config: it compiles, links and runs against the installed copy.
set -u
: "${BUILD:?}" "${SOURCE:?}" "${CC:=cc}"
unset LD_LIBRARY_PATH TANDEM_PLUGIN_DIR        # meson points them at the build tree
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }
meson install -C "$BUILD" --no-rebuild --destdir "$work/root" > "$work/said" 2>&1 || { cat "$work/said"; fail "meson install"; }

pc=$(find "$work/root" -name tandem.pc)
[ -n "$pc" ] || fail "no tandem.pc was installed"
prefix=$(sed -n 's/^prefix=//p' "$pc")
config() { PKG_CONFIG_PATH=$(dirname "$pc") pkg-config --define-variable=prefix="$work/root$prefix" "$@" tandem; }
cat > "$work/tiny.c" <<'C'
#include <tandem.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    if (td_init(&argc, &argv))
        return 10;
    td_tensor *x = td_full(TD_SHAPE(2, 3), TD_F32, 2);
    double sum = td_item(td_sum(td_mul(x, x), NULL, 0, false));
    printf("%s %d of %d: %g\n", td_version(), td_rank(td_world()), td_size(td_world()), sum);
    return sum == 24 ? td_finish() : 11;
}
C
# shellcheck disable=SC2046
"$CC" -std=c11 -Wall -Werror -o "$work/tiny" "$work/tiny.c" $(config --cflags --libs) -Wl,-rpath,"$(config --variable=libdir)" ||
    fail "the program does not build with: $(config --cflags --libs)"
version=$(config --modversion)
# not the library of the build tree
ldd "$work/tiny" | grep -q "libtandem.so.0 => $work/root" || fail "the program uses another library: $(ldd "$work/tiny" | grep tandem)"
got=$(cd / && "$work/tiny") || fail "the program ends with $?"
[ "$got" = "$version 0 of 1: 24" ] || fail "the program says: $got"
for header in "$SOURCE"/include/tandem.h "$SOURCE"/include/tandem/*.h; do
    [ -e "$work/root$prefix/include/${header#"$SOURCE"/include/}" ] || fail "${header##*/} is not installed"
done
# the program of docs/design/ops.md: an operation of one's own, which checks itself
sed -n '/^```c$/,/^```$/p' "$SOURCE/docs/design/ops.md" | sed '/^```/d' > "$work/op.c"
[ -s "$work/op.c" ] || fail "docs/design/ops.md has no program"
# shellcheck disable=SC2046
"$CC" -std=c11 -Wall -Wextra -Werror -o "$work/op" "$work/op.c" $(config --cflags --libs) -lm -Wl,-rpath,"$(config --variable=libdir)" ||
    fail "the program of docs/design/ops.md does not build"
"$work/op" || fail "the program of docs/design/ops.md ends with $?"
tandem=$work/root$prefix/bin/tandem
if [ -e "$tandem" ]; then
    [ "$("$tandem" --version)" = "tandem $version" ] || fail "the installed tandem says $("$tandem" --version)"
    got=$("$tandem" run -n 2 --no-prefix "$work/tiny" | sort | paste -sd,) || fail "two ranks of the program end with $?"
    [ "$got" = "$version 0 of 2: 24,$version 1 of 2: 24" ] || fail "two ranks of the program say: $got"
    [ -e "$work/root$prefix/share/man/man1/tandem.1" ] || fail "no man page"
fi
echo ok
