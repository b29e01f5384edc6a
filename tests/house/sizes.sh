#!/bin/bash
# One file, one idea: 100 to 400 lines. Past 600 it holds two and fails; past 400 it is named.
set -u
: "${SOURCE:?}"
failed=0
while read -r file; do
    lines=$(wc -l < "$file")
    if [ "$lines" -gt 600 ]; then
        echo "FAILED: ${file#"$SOURCE"/} has $lines lines"
        failed=$((failed + 1))
    elif [ "$lines" -gt 400 ]; then
        echo "long: ${file#"$SOURCE"/} has $lines lines"
    fi
done < <(cd "$SOURCE" && find "$SOURCE" -path "$SOURCE/build*" -prune -o -path "$SOURCE/.*" -prune -o -type f \
    \( -name '*.[ch]' -o -name '*.cu' -o -name '*.py' -o -name '*.sh' -o -name meson.build \) -print)
[ $failed -eq 0 ] || exit 1
echo ok
