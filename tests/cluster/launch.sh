# tests/cluster/launch.sh: sourced by the cases of `tandem run` on several hosts.
#
#   launch_ready                    $WORK/steps N (an MPI program: N all-reduces, 10 ms apart; prints its first sum) and $WORK/silent (waits, no MPI)
#   start I COMMAND…                the launcher on host I in the background; returns when all 6 ranks run
#   pid_of_rank R
#   ended CODE NAME PATTERN         the launcher has ended with CODE (a pattern), its first line matches, nothing is left
#   cut_and_time I NAME             cuts the link of host I; both sides are to end in 6 s; joins the link again
#   nothing_left NAME               no rank, agent, launcher, or engine's daemon

launch_ready()
{
    cat > "$WORK/steps.c" << 'C'
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int c, char **v)
{
    int rank, one = 1, sum;
    char name[256], host[65];
    MPI_Init(&c, &v);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int i = 0; i < atoi(v[1]); i++) {
        MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        if (i == 1) {
            gethostname(host, sizeof host);
            printf("rank %d on %s: sum %d\n", rank, host, sum);
            fflush(stdout);
            snprintf(name, sizeof name, "/mnt/running.%d", rank);
            FILE *f = fopen(name, "w");
            fprintf(f, "%d\n", (int)getpid());
            fclose(f);
        }
        usleep(10000);
    }
    MPI_Finalize();
    return 0;
}
C
    mpicc.openmpi -O1 -o "$WORK/steps" "$WORK/steps.c" || fail "mpicc.openmpi does not compile"
    printf '#!/bin/bash\necho $$ > /mnt/running.$RANK\nexec -a tandem-silent sleep 200\n' > "$WORK/silent"
    chmod +x "$WORK/silent"
}

pid_of_rank() { cat "$WORK/running.$1"; }
_all_run() { local r; for r in $(seq 0 $((${RANKS:-6} - 1))); do [ -s "$WORK/running.$r" ] || return 1; done; }
_launcher_ended() { ! kill -0 "$launcher" 2> /dev/null; }
_run_or_ended() { _all_run || _launcher_ended; }
# Debian's Open MPI crashes in MPI_Init now and then under srun --mpi=pmix, plain srun's ranks, too: then it is started again
start()
{
    local i=$1 attempt; shift
    for attempt in 1 2 3 4; do
        rm -f "$WORK"/running.*
        on_start "$i" "$@" > "$WORK/out" 2> "$WORK/err"
        launcher=$started
        wait_until 60 _run_or_ended
        _all_run && return
        wait "$launcher"
        grep -q "was killed by signal 11" "$WORK/err" || break
        echo "Open MPI crashed at its start; once more"
    done
    fail "the ranks do not come to run: $(cat "$WORK/out" "$WORK/err")"
}

# under salloc the launcher is its child
the_launcher() { local p; for p in "$launcher" $(cat /proc/"$launcher"/task/*/children); do [ "$(cat /proc/"$p"/comm)" = tandem ] && echo "$p"; done; }

# what a job consists of, by the names of its processes; zombies are gone
what_is_left()
{
    local p
    for p in /proc/[0-9]*; do
        case $(cat "$p/comm" 2> /dev/null) in
        tandem | steps | silent | sleep | orted | mpirun* | orterun | srun)
            grep -qs '^State:.*Z' "$p/status" && continue
            case "$(tr '\0' ' ' < "$p/cmdline" 2> /dev/null)" in "sleep infinity "* | "") ;; *) tr '\0' ' ' < "$p/cmdline"; echo ;; esac ;;
        esac
    done 2> /dev/null
}
is_nothing_left() { [ -z "$(what_is_left)" ]; }
nothing_left() { wait_until 3 is_nothing_left || fail "$1: left: $(what_is_left)"; }
# first_line: the launcher's first, past the map
first_line() { grep '^tandem run:' "$WORK/err" | grep -vE '^tandem run: ([0-9]+ ranks on|  host)' | head -n 1; }

ended()
{
    local code=$1 name=$2 pattern=$3 got
    wait_until 20 _launcher_ended || fail "$name: the launcher does not end: $(cat "$WORK/err")"
    wait "$launcher"
    got=$?
    [[ $got =~ ^$code$ ]] || fail "$name: exit code $got, expected $code: $(cat "$WORK/err")"
    first_line | grep -Eq "$pattern" || fail "$name: the first line is: $(first_line)"
    nothing_left "$name"
}

_ranks_of() { local p; for p in $(host_pids "$1"); do case $(cat "/proc/$p/comm" 2> /dev/null) in steps | sleep | silent) echo "$p" ;; esac; done; }
_no_ranks_on() { [ -z "$(_ranks_of "$1")" ]; }
cut_and_time()
{
    local i=$1 name=$2 from=$EPOCHREALTIME here there
    link_cut "$i"
    wait_until 20 _launcher_ended || fail "$name: the launcher does not end: $(cat "$WORK/err")"
    here=$(awk -v a="$from" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    wait_until 20 _no_ranks_on "$i" || fail "$name: ranks stay on the host that was cut off: $(what_is_left)"
    there=$(awk -v a="$from" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    wait "$launcher" && fail "$name: the job ended well"
    first_line | grep -q "^tandem run: host node$i ($(host_address "$i")) is lost: no word from it for 3 s; its rank" || fail "$name: the first line is: $(cat "$WORK/err")"
    wait_until 8 is_nothing_left || fail "$name: left: $(what_is_left)"
    awk -v a="$here" -v b="$there" 'BEGIN { exit !(a <= 6 && b <= 6) }' || fail "$name: the job took $here s to end, the other side $there s"
    figure "$name: the job has ended after" "$here" s
    link_join "$i"
    sleep 1
}
