#!/bin/sh
# cluster/container/user.sh [UID]: run as root inside a container: the user "train" and its ssh, for MPIJob. Workers run sshd as that user, so on a port
# above 1023; keys come from the job's secret, mounted read-only, with owners and modes that ssh would otherwise refuse.
set -eu
useradd --create-home --uid "${1:-1000}" --shell /bin/bash train
cat > /home/train/.sshd_config << 'CONF'
Port 2222
PidFile /home/train/.sshd.pid
HostKey /home/train/.ssh/id_rsa
StrictModes no
UsePAM no
PasswordAuthentication no
CONF
chown train:train /home/train/.sshd_config
mkdir -p /etc/ssh/ssh_config.d
cat > /etc/ssh/ssh_config.d/tandem.conf << 'CONF'
Host *
    Port 2222
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
CONF
