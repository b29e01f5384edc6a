#!/bin/bash
# Every field of an option struct in include/ documents its default: in the comment on its line, which may go on in the next
# comment lines of the struct. Fields named reserved are room to grow.
set -u
: "${SOURCE:?}"
awk '
    function judge() {
        if (field != "" && !(comment ~ /[Dd]efault/)) {
            pending[++n] = where ": " field ": no default in \"" comment "\""
        }
        field = ""; comment = ""
    }
    FNR == 1 { inside = 0 }
    /typedef struct/ && !/}/ { inside = 1; n = 0; fields = 0; field = ""; next }
    /typedef struct.*}.*_opts;/ {                         # all in one line: the comment speaks for all fields
        text = $0; sub(/}.*/, "", text); gsub(/uint64_t reserved\[[0-9]+\];/, "", text)
        total++
        if (text ~ /;/ && !($0 ~ /\/\*.*[Dd]efault/)) { print "FAILED: " FILENAME ":" FNR ": no default in " $0; bad++ }
        next
    }
    inside && /^}/ {
        judge()
        if ($0 ~ /_opts;/) {
            total++
            for (i = 1; i <= n; i++) { print "FAILED: " pending[i]; bad++ }
        }
        inside = 0
        next
    }
    inside {
        line = $0; text = ""
        if (match(line, /\/\*.*/)) { text = substr(line, RSTART); line = substr(line, 1, RSTART - 1) }
        gsub(/^[ \t]+|[ \t]+$/, "", line)
        if (line ~ /;/) { judge(); if (!(line ~ /reserved/)) { field = line; where = FILENAME ":" FNR }; comment = text }
        else if (text != "" || line != "") comment = comment " " $0
    }
    END {
        if (total < 5) { print "FAILED: only " total " option structs were found: this test reads the headers wrongly"; bad++ }
        if (bad) exit 1
        print total " option structs, every field with its default"
    }' "$SOURCE"/include/tandem/*.h
