#!/usr/bin/env bash
# title: the commands of cluster/kubernetes/mpijob.yaml, with the operator's variables and hostfile, over real ssh as the image sets it up
# needs: hosts 3
# limit: 180
. "$(dirname "$0")/lib.sh"
command -v sshd > /dev/null || skip "sshd is not installed (openssh-server)"
grep -qw overlay /proc/filesystems || skip "this kernel has no overlay file system: /etc of the hosts cannot be their own"
[ -x "$BUILD/examples/linear" ] || fail "examples/linear is not built"

# fields by fields: what the specification knows at these places, and what the operator takes them for
/usr/bin/python3 - "$ROOT/cluster/kubernetes/mpijob.yaml" > "$WORK/commands" << 'PY' || fail "cluster/kubernetes/mpijob.yaml is not what the operator expects"
import shlex, sys, yaml
job = yaml.safe_load(open(sys.argv[1]))
def only(what, of, names):
    assert set(of) <= set(names), f"{what}: unknown {sorted(set(of) - set(names))}"
only("job", job, ["apiVersion", "kind", "metadata", "spec"])
assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
spec = job["spec"]
only("spec", spec, ["slotsPerWorker", "runLauncherAsWorker", "runPolicy", "mpiReplicaSpecs", "sshAuthMountPath", "launcherCreationPolicy", "mpiImplementation"])
only("runPolicy", spec["runPolicy"], ["cleanPodPolicy", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit", "schedulingPolicy", "suspend", "managedBy"])
assert spec["runPolicy"]["cleanPodPolicy"] in ("All", "Running", "None") and spec["mpiImplementation"] == "OpenMPI"
assert spec["launcherCreationPolicy"] in ("AtStartup", "WaitForWorkersReady") and isinstance(spec["slotsPerWorker"], int)
only("mpiReplicaSpecs", spec["mpiReplicaSpecs"], ["Launcher", "Worker"])
for name, replica in spec["mpiReplicaSpecs"].items():
    only(name, replica, ["replicas", "restartPolicy", "template"])
    assert replica["restartPolicy"] in ("Never", "OnFailure") and len(replica["template"]["spec"]["containers"]) == 1
    container = replica["template"]["spec"]["containers"][0]
    only(name, container, ["name", "image", "command", "args", "env", "resources", "securityContext", "readinessProbe", "volumeMounts"])
    words = container["command"] + container["args"]
    assert all(isinstance(w, str) for w in words), f"{name}: a word of its command is no text"
    print(f"{name}=({' '.join(shlex.quote(w) for w in words)})")
    for e in container.get("env", []):
        print(f"{name}_env+=({shlex.quote(e['name'] + '=' + e['value'])})")
print("slots=%d workers=%d ssh_folder=%s" % (spec["slotsPerWorker"], spec["mpiReplicaSpecs"]["Worker"]["replicas"], shlex.quote(spec["sshAuthMountPath"])))
PY
Launcher_env=() Worker_env=()
. "$WORK/commands"
[ "$workers" = 2 ] || fail "the case knows 2 workers, mpijob.yaml has $workers"

# every host a pod: /etc and /home of its own, prepared by the image's script; the operator's names, hostfile and keys
hosts_up 3
mkdir "$WORK/ssh" "$WORK/etc-mpi"
ssh-keygen -q -t rsa -b 2048 -N '' -f "$WORK/ssh/id_rsa" && cp "$WORK/ssh/id_rsa.pub" "$WORK/ssh/authorized_keys"
pods=(train-launcher train-worker-0 train-worker-1)
for i in 0 1 2; do
    echo "$(host_address "$i") ${pods[$i]}.train.default.svc ${pods[$i]}" >> "$WORK/pods"
    [ "$i" = 0 ] || echo "${pods[$i]}.train.default.svc slots=$slots" >> "$WORK/etc-mpi/hostfile"
done
for i in 0 1 2; do
    # shellcheck disable=SC2016
    on "$i" bash -ec '
        hostname "$1"; mkdir "$LOCAL/up" "$LOCAL/work"; chmod 755 "$LOCAL"
        mount -t overlay overlay -o "lowerdir=/etc,upperdir=$LOCAL/up,workdir=$LOCAL/work" /etc
        mount -t tmpfs -o mode=755 home /home
        cat "$2/pods" >> /etc/hosts
        "$3/cluster/container/user.sh" 4242
        mkdir -p "$4" /etc/mpi; cp "$2"/ssh/* "$4"; chown -R train "$4"; chmod 600 "$4/id_rsa"; cp "$2/etc-mpi/hostfile" /etc/mpi/' \
        bash "${pods[$i]}" "$WORK" "$ROOT" "$ssh_folder" > "$WORK/pod$i" 2>&1 || fail "pod $i cannot be prepared: $(tail -n 3 "$WORK/pod$i")"
done
pod() { local i=$1; shift; on "$i" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/train TMPDIR=/tmp "$@"; }
as_train=(setpriv --reuid train --regid train --init-groups --)
for i in 1 2; do
    on_start "$i" env -i "${as_train[@]}" "${Worker[@]}" > "$WORK/sshd$i" 2>&1
    wait_until 10 on "$i" bash -c ": < /dev/tcp/localhost/2222" 2> /dev/null || fail "the worker's command does not serve ssh: $(cat "$WORK/sshd$i")"
done

# The launcher's command with the test's program in place of the image's; the operator's variables. Open MPI's settings for this machine: the image has its own.
mca=(--mca rmaps_base_oversubscribe 1 --mca mpi_yield_when_idle 1 --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 -x "TANDEM_PLUGIN_DIR=$TANDEM_PLUGIN_DIR")
words=()
for w in "${Launcher[@]}"; do
    case $w in
    mpirun) words+=("$MPIRUN" "${mca[@]}") ;;
    /opt/tandem/examples/*) words+=("$BUILD/examples/linear" 150); break ;;
    *) words+=("$w") ;;
    esac
done
[ "${words[-1]}" = 150 ] || fail "the launcher's command names no program of the image: ${Launcher[*]}"
cd /
seconds pod 0 OMPI_MCA_orte_keep_fqdn_hostnames=true OMPI_MCA_orte_default_hostfile=/etc/mpi/hostfile OMPI_MCA_plm_rsh_args="-o ConnectionAttempts=10" \
    OMPI_MCA_orte_set_default_slots="$slots" K_MPI_JOB_ROLE=launcher "${Launcher_env[@]}" "${as_train[@]}" timeout 60 "${words[@]}" > "$WORK/out" 2>&1 ||
    fail "the launcher: $(tail -n 5 "$WORK/out")"
grep -q "after 150 steps on $((slots * workers)) ranks" "$WORK/out" || fail "the launcher prints: $(tail -n 5 "$WORK/out")"
figure "MPIJob's commands, 01_linear on $((slots * workers)) ranks in 2 workers, over ssh as a user, start to end" "$took" s
