#!/bin/bash
# Each public header compiles alone, as C11 and as C++17, without a warning.
set -u
: "${SOURCE:?}" "${CC:=cc}"
failed=0
mpi=$(pkg-config --cflags-only-I ompi-c 2> /dev/null | sed 's/-I/-isystem /g')
warnings="-Wall -Wextra -pedantic -Werror -fsyntax-only -I $SOURCE/include"
for header in tandem.h $(cd "$SOURCE/include" && echo tandem/*.h); do
    [ "$header" = tandem/mpi.h ] && [ -z "$mpi" ] && continue
    for language in "c -std=c11 -Wstrict-prototypes" "c++ -std=c++17"; do
        # shellcheck disable=SC2086
        if ! echo "#include <$header>" | "$CC" -x $language $warnings $mpi - ; then
            echo "FAILED: $header alone as ${language%% *}"
            failed=$((failed + 1))
        fi
    done
done
# the short program of the README is a program
program=$(sed -n '/^```c$/,/^```$/p' "$SOURCE/README.md" | sed '/^```/d')
[ -n "$program" ] || { echo "FAILED: the README has no program"; failed=$((failed + 1)); }
if ! echo "$program" | "$CC" -x c -std=c11 -Wall -Wextra -Werror -fsyntax-only -I "$SOURCE/include" -; then
    echo "FAILED: the README's program does not compile"
    failed=$((failed + 1))
fi
[ $failed -eq 0 ] || exit 1
echo ok
