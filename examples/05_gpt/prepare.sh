#!/bin/sh
# Writes the King James Bible (Debian's bible-kjv) as two texts: prepare.sh [DIR]. Every twentieth chapter is kept for validation, so that both
# parts hold all books; a verse's number is dropped, one verse a line.
set -eu
dir=${1:-.}
command -v bible > /dev/null || { echo "prepare.sh: the program bible is missing: install bible-kjv" >&2; exit 1; }
mkdir -p "$dir"
bible -f gen1:1-rev22:21 | awk -v train="$dir/bible-train.txt.new" -v valid="$dir/bible-valid.txt.new" '
    {
        chapter = $1; sub(/:.*/, "", chapter)
        if (chapter != last) { n++; last = chapter }
        sub(/^[^ ]* /, "")
        print > (n % 20 == 10 ? valid : train)
    }'
mv "$dir/bible-train.txt.new" "$dir/bible-train.txt"
mv "$dir/bible-valid.txt.new" "$dir/bible-valid.txt"
wc -c "$dir/bible-train.txt" "$dir/bible-valid.txt"
