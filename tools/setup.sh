# tools/setup.sh: sourced by ./quickstart, ./check and their like: installs the packages of packages.list that are missing. When none is, it
# asks dpkg once and touches nothing. Whatever goes wrong ends in one sentence. $root is the repository.

tandem_fail()
{
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# missing_packages LIST…: the names in these files of the repository that are not installed, on one line
missing_packages()
{
    local wanted have
    wanted=$(cd "$root" && sed 's/#.*//' "$@" | tr -s ' \t' '\n' | sed '/^$/d' | sort -u)
    # dpkg-query fails when it does not know one of the names
    # shellcheck disable=SC2086
    have=$({ dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2> /dev/null || true; } | sed -n 's/^installed //p' | sort -u)
    comm -23 <(printf '%s\n' "$wanted") <(printf '%s\n' "$have") | tr '\n' ' '
}

# why_apt_failed LOG: the cause in words
why_apt_failed()
{
    if grep -q 'No space left on device\|enough free space' "$1"; then
        echo "the disk is full"
    elif grep -q 'Could not get lock\|Unable to acquire the dpkg' "$1"; then
        echo "another apt is at work; try again when it is done"
    elif grep -q 'Temporary failure resolving\|Could not resolve\|Could not connect\|Cannot initiate the connection\|Unable to connect\|Failed to fetch\|Unable to fetch\|Connection timed out' "$1"; then
        echo "the network or the package server cannot be reached"
    elif grep -q 'Unable to locate package\|has no installation candidate' "$1"; then
        echo "$(grep -o 'Unable to locate package [^ ]*\|Package .* has no installation candidate' "$1" | head -n 1) (Debian 12 has all of them)"
    else
        echo "$(grep '^E:' "$1" | head -n 1) (the whole text is in $1)"
    fi
}

# setup_packages [LIST…]: packages.list if no other is named
setup_packages()
{
    [ $# -gt 0 ] || set -- packages.list
    command -v apt-get > /dev/null && command -v dpkg-query > /dev/null ||
        tandem_fail "this is no Debian system (no apt-get): install what is in $* by hand, then use meson"
    local missing as_root='' log
    missing=$(missing_packages "$@")
    [ -z "${missing// /}" ] && return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo > /dev/null || tandem_fail "these packages are missing, and installing them needs root or sudo: $missing"
        as_root=sudo
    fi
    mkdir -p "$root/build-logs" 2> /dev/null || tandem_fail "$root cannot be written to"
    log=$root/build-logs/apt.log
    echo "installing: $missing"
    # shellcheck disable=SC2086
    if ! $as_root env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"' sh $missing > "$log" 2>&1; then
        tandem_fail "packages cannot be installed: $(why_apt_failed "$log"); missing: $missing"
    fi
    missing=$(missing_packages "$@")
    [ -z "${missing// /}" ] || tandem_fail "packages cannot be installed: $(why_apt_failed "$log"); missing: $missing"
}

# setup_space MB: a disk that is nearly full is said at once, not in the middle of a build
setup_space()
{
    local free
    free=$(df -Pm "$root" | awk 'NR == 2 { print $4 }')
    [ "${free:-9999}" -ge "$1" ] || tandem_fail "the disk is full: $root has $free MB free, and $1 MB are needed"
}

# run_logged WHAT LOG COMMAND…: quiet unless it fails
run_logged()
{
    local what=$1 log=$2; shift 2
    mkdir -p "$(dirname "$log")" 2> /dev/null || tandem_fail "$(dirname "$log") cannot be written to"
    if ! "$@" > "$log" 2>&1; then
        grep -m 20 -E 'error|Error|ERROR|FAILED' "$log" >&2 || tail -n 20 "$log" >&2
        if grep -q 'No space left on device' "$log"; then
            tandem_fail "$what failed: the disk is full"
        fi
        tandem_fail "$what failed; the whole text is in $log"
    fi
}

# setup_tree FOLDER MESON_OPTIONS…: configures a build tree unless that was done
setup_tree()
{
    local tree=$1; shift
    [ -f "$root/$tree/build.ninja" ] && return 0
    rm -rf "${root:?}/$tree"
    run_logged "meson setup of $tree" "$root/build-logs/$tree-setup.log" meson setup "$root/$tree" "$root" "$@"
}
