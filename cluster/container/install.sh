#!/bin/sh
# cluster/container/install.sh: run as root inside a Debian 12 container, in the repository: installs Tandem with Open MPI and an ssh server into it. Dockerfile and
# tandem.def call it, so that both images are the same. Compilers stay in: programs are built against the library inside the image.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# packages.list up to what only tests need
# shellcheck disable=SC2046
apt-get install -y -qq --no-install-recommends $(sed -e '/^# test/,$d' -e 's/#.*//' "$here/packages.list") openssh-server openssh-client
rm -rf /var/lib/apt/lists/*

build=$(mktemp -d)
meson setup "$build" "$here" --buildtype=release --prefix=/usr/local -Dtests=disabled
ninja -C "$build" install
install -D -t /opt/tandem/examples "$build/examples/fashion" "$build/examples/linear"
rm -rf "$build"
ldconfig

"$here/cluster/container/user.sh"
