#!/bin/sh
# Makes DIR/train.tsv and DIR/valid.tsv of the King James Bible (Debian: bible-kjv): which part of it is a verse from?
# Every tenth chapter is held out whole, so that no verse of validation stands next to one of training.
set -eu
dir=${1:?usage: prepare.sh DIR}
command -v bible > /dev/null || { echo "prepare.sh: the program bible is missing (Debian package bible-kjv)" >&2; exit 1; }
mkdir -p "$dir"
bible -f gen1:1-rev22:21 | awk -v dir="$dir" '
BEGIN {
    part("law", "Ge Exo Lev Num Deu")
    part("history", "Josh Jdgs Ruth 1Sm 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh Est")
    part("poetry", "Job Psa Prv Eccl SSol")
    part("prophets", "Isa Jer Lam Eze Dan Hos Joel Amos Obad Jonah Mic Nahum Hab Zep Hag Zec Mal")
    part("gospels", "Mat Mark Luke John")
    part("acts", "Acts")
    part("letters", "Rom 1Cor 2Cor Gal Eph Phi Col 1Th 2Th 1Tim 2Tim Titus Phmn Heb Jas 1Pet 2Pet 1Jn 2Jn 3Jn Jude")
    part("revelation", "Rev")
}
function part(name, books,    list, n, i) {
    n = split(books, list, " ")
    for (i = 1; i <= n; i++)
        of[list[i]] = name
}
{
    split($1, place, ":")
    if (place[1] != before) { chapters++; before = place[1] }
    match(place[1], /[0-9]+$/)
    book = substr(place[1], 1, RSTART - 1)
    if (!(book in of)) { print "prepare.sh: unknown book " book > "/dev/stderr"; bad = 1; exit 1 }
    text = $0
    sub(/^[^ ]+ /, "", text)
    print of[book] "\t" text > (dir "/" (chapters % 10 == 5 ? "valid.tsv" : "train.tsv"))
}
END { exit bad }'
wc -l "$dir/train.tsv" "$dir/valid.tsv"
