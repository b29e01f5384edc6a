#!/bin/bash
# What a CUDA plug-in says of itself becomes lines of `tandem doctor`, one for each thing that it runs on.
set -u
: "${TANDEM:?}" "${PLUGIN:?}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$PLUGIN" "$work/libcuda.so.1"                   # any library will do: it is opened and not asked
export LD_LIBRARY_PATH=$work${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} TANDEM_PLUGIN_DIR=$work/nothing:${PLUGIN%/*}
said=$("$TANDEM" doctor | sed -n '/ CUDA /,/^$/p')
expected='ok       CUDA           driver for CUDA 99.1, runtime 98.2
ok       cuda:0         Some GPU, 1.5 GiB of memory, 1.4 free
missing: cuda:1         cannot be opened: busy
ok       cuBLASLt       1.2.3
missing: cuDNN          no libcudnn.so.9: convolutions run on kernels of our own
missing: NCCL           no libnccl.so.2: a world of one'
[ "$said" = "$expected" ] && echo ok && exit 0
diff <(echo "$expected") <(echo "$said")
exit 1
