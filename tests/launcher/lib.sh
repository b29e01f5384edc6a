# tests/launcher/lib.sh: what the launcher's tests share. $TANDEM is the program. Each test is a bash script of its own:
# check NAME EXPECTED GOT, and `finish` at the end, which fails when a check failed or a process was left behind.
set -u
: "${TANDEM:?the tandem program}"
work=$(mktemp -d)
export TANDEM_RUNTIME_DIR=$work/boxes
unset OMP_NUM_THREADS TANDEM_TERMINAL TANDEM_THREADS
mark=tandem-test-$$                            # every sleeper of this test carries it in its arguments
failed=0
trap 'rm -rf "$work"' EXIT

check()
{
    if [ "$2" = "$3" ]; then
        echo "ok: $1"
    else
        echo "FAILED: $1"; echo "  expected: $2"; echo "  got:      $3"
        failed=$((failed + 1))
    fi
}

# check_like NAME PATTERN TEXT: an extended regular expression somewhere in the text
check_like()
{
    if printf '%s\n' "$3" | grep -Eq -- "$2"; then
        echo "ok: $1"
    else
        echo "FAILED: $1"; echo "  expected to match: $2"; echo "  got: $3"
        failed=$((failed + 1))
    fi
}

# sleeper: a shell command that stays for a minute and can be found again
sleeper()
{
    printf 'exec -a %s sleep 60' "$mark"
}

# how many sleepers live now (pgrep would find itself and us by the same argument)
sleepers()
{
    local n=0 p
    for p in /proc/[0-9]*; do
        if [ "$( { tr '\0' ' ' < "$p/cmdline"; } 2> /dev/null | cut -d' ' -f1)" = "$mark" ]; then n=$((n + 1)); fi
    done
    echo $n
}

# wait_for SECONDS COMMAND…: until the command succeeds
wait_for()
{
    local tries=$(($1 * 20)); shift
    while ! "$@" > /dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.05
    done
}

sleepers_are() { [ "$(sleepers)" = "$1" ]; }

finish()
{
    wait_for 3 sleepers_are 0
    check "no process is left" 0 "$(sleepers)"
    check "no black box is left but the named ones" "${boxes_left:-0}" "$(ls "$work/boxes" 2>/dev/null | wc -l)"
    [ $failed -eq 0 ] || { echo "$failed failed"; exit 1; }
    exit 0
}
