#!/bin/bash
# tools/setup.sh with a made-up package manager: nothing missing does nothing; each trouble is one clear sentence.
set -u
: "${SOURCE:?}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
check()
{
    case $3 in
    $2) echo "ok: $1" ;;
    *) echo "FAILED: $1"; echo "  expected: $2"; echo "  got: $3"; failed=$((failed + 1)) ;;
    esac
}
mkdir "$work/bin" "$work/repository"
printf '# comment\nalpha   # why\n\nbeta\n' > "$work/repository/packages.list"
cat > "$work/bin/dpkg-query" <<'SH'
#!/bin/sh
for p; do grep -qx "$p" "$STATE/installed" && echo "installed $p"; done
exit 1
SH
cat > "$work/bin/apt-get" <<'SH'
#!/bin/sh
echo "$* [$DEBIAN_FRONTEND]" >> "$STATE/calls"
[ "$1" = update ] && exit 0
if [ -s "$STATE/trouble" ]; then cat "$STATE/trouble"; exit 100; fi
for p; do case $p in -*|install) ;; *) echo "$p" >> "$STATE/installed" ;; esac; done
SH
printf '#!/bin/sh\ncat "$STATE/id"\n' > "$work/bin/id"
chmod +x "$work"/bin/*
export STATE=$work

# attempt INSTALLED TROUBLE ID [PATH]: what setup_packages says, of the lists in $lists
lists=
attempt()
{
    printf '%s' "$1" > "$work/installed"; printf '%s' "$2" > "$work/trouble"; echo "$3" > "$work/id"; : > "$work/calls"
    PATH=${4:-$work/bin:$PATH} root=$work/repository "$BASH" -euo pipefail -c '. "$1"; setup_packages "${@:2}"; echo done' check "$SOURCE/tools/setup.sh" $lists 2>&1
}
check "nothing missing" "done" "$(attempt $'alpha\nbeta\n' '' 0)"
check "nothing missing: apt-get is not asked" "" "$(cat "$work/calls")"
check "one missing" $'installing: beta \ndone' "$(attempt $'alpha\n' '' 0)"
check "one missing: one update, one install" $'update -qq \[noninteractive]\ninstall -y -qq --no-install-recommends beta \[noninteractive]' "$(cat "$work/calls")"
printf 'gamma   # more\n' > "$work/repository/packages-more.list"
lists="packages.list packages-more.list"
check "two lists" $'installing: gamma \ndone' "$(attempt $'alpha\nbeta\n' '' 0)"
lists=
check "no network" "*check: packages cannot be installed: the network or the package server cannot be reached; missing: alpha beta " \
    "$(attempt '' "E: Failed to fetch http://mirror.invalid/x Temporary failure resolving 'mirror.invalid'" 0)"
check "disk full" "*check: packages cannot be installed: the disk is full; missing: beta " \
    "$(attempt $'alpha\n' "E: You don't have enough free space in /var/cache/apt/archives/." 0)"
check "apt is locked" "*another apt is at work*" "$(attempt '' 'E: Could not get lock /var/lib/dpkg/lock-frontend.' 0)"
check "unknown package" "*Unable to locate package beta*" "$(attempt $'alpha\n' 'E: Unable to locate package beta' 0)"

# without root, sudo or Debian: a PATH with only what the script itself uses
mkdir "$work/few"
for tool in sed tr sort comm grep head cat env sh mkdir; do ln -s "$(command -v $tool)" "$work/few/$tool"; done
ln -s "$work"/bin/* "$work/few/"
check "no root, no sudo" "check: these packages are missing, and installing them needs root or sudo: alpha beta " "$(attempt '' '' 1000 "$work/few")"
rm "$work/few/apt-get"
check "no Debian" "check: this is no Debian system*" "$(attempt '' '' 0 "$work/few")"
[ $failed -eq 0 ] || exit 1
