#!/bin/bash
# A machine whose GPUs cannot be used: training falls back to the CPU when nobody asked for a GPU, asking for one is one sentence, and
# `tandem doctor` says the same. Without a driver; and, where the plug-in was built, with the toolkit's stub in the driver's place.
set -u
: "${TANDEM:?}" "${LINEAR:?}"
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -e /dev/nvidiactl ] || ldconfig -p | grep -q 'libcuda\.so\.1 '; then
    echo "this machine has an NVIDIA driver: nothing to see here"
    exit 77
fi
# expect WHAT PATTERN TEXT
expect()
{
    grep -qE -- "$2" <<< "$3" && return
    echo "FAILED: $1: expected \"$2\" in: $3"
    failed=$((failed + 1))
}
# refused WHAT SENTENCE: asked for by name it is an error that says this, in one line; left to itself it runs
refused()
{
    local said status
    said=$(TANDEM_DEVICE=cuda "$LINEAR" 150 2>&1)
    status=$?
    [ "$status" -ne 0 ] || { echo "FAILED: $1: TANDEM_DEVICE=cuda ends well"; failed=$((failed + 1)); }
    expect "$1, TANDEM_DEVICE=cuda" "TANDEM_DEVICE is \"cuda\", but cuda:0 cannot be used: $2" "$said"
    [ "$(grep -c 'cannot be used' <<< "$said")" = 1 ] || { echo "FAILED: $1: more than one sentence: $said"; failed=$((failed + 1)); }
    said=$(env -u TANDEM_DEVICE "$LINEAR" 150 2>&1)
    status=$?
    [ "$status" -eq 0 ] || { echo "FAILED: $1: without TANDEM_DEVICE it ends with $status: $said"; failed=$((failed + 1)); }
    said=$("$TANDEM" doctor)
    expect "$1, doctor" "^missing: +CUDA +$3" "$said"
    expect "$1, doctor's verdict" '^Training on the CPU works here\.$' "$said"
}

refused "no driver" "this machine has no NVIDIA driver \(libcuda.so.1\)" "no NVIDIA driver \(libcuda.so.1\)"
if [ -n "${PLUGIN:-}" ] && [ -e "${STUB:-}" ]; then
    ln -s "$STUB" "$work/libcuda.so.1"
    export LD_LIBRARY_PATH=$work${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    TANDEM_PLUGIN_DIR=$work refused "no plug-in" ".*libtandem-cuda.so" ".*libtandem-cuda.so"
    export TANDEM_PLUGIN_DIR=${PLUGIN%/*}
    stub="the libcuda.so.1 that was found is the toolkit's stub and no driver: check LD_LIBRARY_PATH"
    refused "the toolkit's stub" "$stub" "$stub"
    unset TANDEM_PLUGIN_DIR
    expect "doctor finds the plug-in itself" "^missing: +CUDA +$stub" "$("$TANDEM" doctor)"
fi
[ "$failed" -eq 0 ] && echo ok
