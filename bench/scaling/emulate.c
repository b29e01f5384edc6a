/* bench/scaling/emulate.c: a training step that only waits where it would compute, over the real transport: what a simulated step is compared with.
 *
 *     mpirun … emulate PLAN --forward MS --backward MS --optimizer MS [--scale X] [--steps N]
 *
 * Every rank sleeps until a bucket of PLAN is ready, starts its all-reduce and sleeps on, as backward goes on computing; then waits for all, and sleeps for the
 * optimizer. --scale: of the buckets' bytes, for slow links. Several hosts of one machine share its few cores: sleeping leaves them to the transport, as
 * each host's own would be. Rank 0 prints the median step in ms, and what the buckets take when nothing is computed beside them.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include "../common.h"

enum { MAX_BUCKETS = 256, MAX_STEPS = 200 };

static void sleep_until(double moment)
{
    struct timespec t = { .tv_sec = (time_t)moment, .tv_nsec = (long)((moment - (double)(time_t)moment) * 1e9) };
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

static int buckets;
static td_tensor *bucket[MAX_BUCKETS];
static double ready[MAX_BUCKETS];

static int read_plan(const char *path, double scale)
{
    char line[200];
    FILE *f = fopen(path, "r");
    if (!f)
        return -1;
    for (long long bytes; fgets(line, sizeof line, f) && buckets < MAX_BUCKETS;)
        if (sscanf(line, "bucket %lld %lf", &bytes, &ready[buckets]) == 2) {
            int64_t n = (int64_t)((double)bytes * scale) / 4;
            bucket[buckets++] = td_keep(td_zeros_shared(td_world(), TD_SHAPE(n > 0 ? n : 1), TD_F32));
        }
    fclose(f);
    return buckets ? 0 : -1;
}

static double step(double forward, double backward, double optimizer)
{
    td_work *work[MAX_BUCKETS];
    double begun = now();
    for (int b = 0; b < buckets; b++) {
        sleep_until(begun + forward + ready[b] * backward);
        work[b] = td_all_reduce_start(td_world(), bucket[b], TD_SUM);
    }
    sleep_until(begun + forward + backward);
    for (int b = 0; b < buckets; b++)
        td_wait(work[b]);
    sleep_until(now() + optimizer);
    return now() - begun;
}

int main(int argc, char **argv)
{
    static const struct option known[] = { { "forward", 1, NULL, 'f' }, { "backward", 1, NULL, 'b' }, { "optimizer", 1, NULL, 'o' },
                                           { "scale", 1, NULL, 's' },   { "steps", 1, NULL, 'n' },    { 0 } };
    double forward = 0, backward = 0, optimizer = 0, scale = 1;
    int steps = 5;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;)
        switch (c) {
        case 'f': forward = atof(optarg) * 1e-3; break;
        case 'b': backward = atof(optarg) * 1e-3; break;
        case 'o': optimizer = atof(optarg) * 1e-3; break;
        case 's': scale = atof(optarg); break;
        case 'n': steps = atoi(optarg); break;
        default: return 2;
        }
    if (optind + 1 != argc || steps < 1 || steps > MAX_STEPS) {
        fprintf(stderr, "emulate: usage: see the head of emulate.c\n");
        return 2;
    }
    td_init(NULL, NULL);
    if (read_plan(argv[optind], scale)) {
        fprintf(stderr, "emulate: %s: no plan of buckets (%s)\n", argv[optind], strerror(errno));
        return 1;
    }
    double both[2][MAX_STEPS];
    for (int kind = 0; kind < 2; kind++)
        for (int i = -1; i < steps && !td_error_pending(); i++) {
            td_barrier(td_world());
            double t = kind ? step(0, 0, 0) : step(forward, backward, optimizer);
            both[kind][i < 0 ? 0 : i] = t;
        }
    if (td_rank(td_world()) == 0 && !td_error_pending())
        printf("ranks %d backend %s step %.3f ms communication %.3f ms\n", td_size(td_world()), td_comm_backend_name(td_world()), 1e3 * median(both[0], steps),
               1e3 * median(both[1], steps));
    for (int b = 0; b < buckets; b++)
        td_release(bucket[b]);
    return td_finish();
}
