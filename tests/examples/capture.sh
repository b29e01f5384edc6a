#!/usr/bin/env bash
# capture.sh COMMAND…: with --capture it prints the same result as without.
set -eu
plain=$("$@" | grep accuracy)
captured=$("$@" --capture | grep accuracy)
echo "$plain, captured: $captured"
[ -n "$plain" ] && [ "$plain" = "$captured" ]
