/* bench/events.c: what one event of bookkeeping takes, and how many there are in a step: bench/costs makes a table of it.
 *
 *     tandem run -n 2 events      rank 0 prints "name value" lines: ns of one event; of the MLP 784-1024-1024-10, batch 64 per rank, SGD with momentum:
 *                                 ms of a step and its collectives
 *     tandem run -n 2 events steps N   N steps and nothing else, for counting instructions
 *     events sites N              calls both functions of events_site.c N times, for the same
 *
 * An event is what a collective does for its fingerprint (written, and compared with every rank's), what the black box is told when it begins
 * and ends, and what a public function does to know its caller.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <comm_room.h>
#include <tandem.h>
#include "common.h"

enum { ROWS = 64, WARM = 20, STEPS = 300, RANKS = 2 };
int events_with_site(int x);
int events_without_site(int x);

/* Nanoseconds of one call: the median of 21 rounds. */
#define NS(count, CALL)                                                                                      \
    ({                                                                                                       \
        double round_[21];                                                                                   \
        for (int r_ = 0; r_ < 21; r_++) {                                                                    \
            const int64_t begun_ = td__now_ns();                                                             \
            for (int i = 0; i < (count); i++) {                                                              \
                CALL;                                                                                        \
            }                                                                                                \
            round_[r_] = (double)(td__now_ns() - begun_) / (count);                                          \
        }                                                                                                    \
        median(round_, 21);                                                                                  \
    })

static double site_ns(void)
{
    int x = 0;
    const double with = NS(100000, x = events_with_site(x)), without = NS(100000, x = events_without_site(x));
    return with - without;
}

/* On pages of our own, laid out as those of a host with so many ranks. */
static double fingerprint_ns(const td_coll *coll)
{
    td__control c = { .n = RANKS };
    void *memory = calloc(1, td__control_bytes(RANKS));
    if (!memory)
        return -1;
    td__control_view(&c, memory, RANKS);
    c.mine = &c.slot[0];
    td__coll_fingerprint(coll, &td__control_entry(&c, 1, coll->turn)->print);
    bool equal = true;
    const double ns = NS(10000, {
        td__control_enter(&c, coll);
        for (int k = 0; k < RANKS; k++)
            equal &= td__fingerprint_equal(&td__control_entry(&c, 0, coll->turn)->print, &td__control_entry(&c, k, coll->turn)->print);
        td__control_leave(&c);
    });
    free(memory);
    return equal ? ns : -1;
}

static void measure_step(int warm, int steps, double *ms, double *collectives)
{
    td_module *net = td_nn_sequential(td_nn_linear(784, 1024, NULL), td_nn_relu(), td_nn_linear(1024, 1024, NULL), td_nn_relu(),
                                      td_nn_linear(1024, 10, NULL));
    td_ddp_new(net, NULL);
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.02f, .momentum = 0.9f });
    td_tensor *x = td_randn(TD_SHAPE(ROWS, 784), 1, 0), *y = td_randint(0, 10, TD_SHAPE(ROWS), 1, 1);
    static double time[STEPS];
    uint64_t before = 0;
    for (int i = -warm; i < steps; i++) {
        TD_SCOPE();
        if (i == 0)
            before = atomic_load(&td__box_get()->collectives);
        const int64_t begun = td__now_ns();
        td_backward(td_cross_entropy(td_forward(net, x), y, NULL));
        td_optim_step(opt);
        if (i >= 0)
            time[i] = (double)(td__now_ns() - begun) * 1e-6;
    }
    *collectives = (double)(atomic_load(&td__box_get()->collectives) - before) / steps;
    *ms = median(time, steps);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "sites")) {
        int x = 0;
        for (int i = atoi(argv[2]); i > 0; i--)
            x = events_without_site(events_with_site(x));
        return x < 0;
    }
    const int only = argc == 3 && !strcmp(argv[1], "steps") ? atoi(argv[2]) : 0;
    if ((argc != 1 && only < 1) || only > STEPS) {
        fprintf(stderr, "events: usage: tandem run -n 2 events [steps 1..%d]; events sites N\n", STEPS);
        return 2;
    }
    td_init(&argc, &argv);
    if (td_size(td_world()) != RANKS) {
        fprintf(stderr, "events: %d ranks, expected %d (tandem run -n %d)\n", td_size(td_world()), RANKS, RANKS);
        return 2;
    }
    double ms, collectives;
    measure_step(only ? 0 : WARM, only ? only : STEPS, &ms, &collectives);
    if (only)
        return td_finish();
    const td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = TD_F32, .count = 1 << 20, .pre = 1, .post = 1, .seq = 1000, .turn = 1000,
                           .site = (const void *)&measure_step, .label = "bucket 1" };
    const double box = NS(10000, { td__comm_box_enter(&coll); td__comm_box_leave(&coll, true); });
    const double site = site_ns(), fingerprint = fingerprint_ns(&coll);
    if (td_rank(td_world()) == 0)
        printf("step_ms %.3f\ncollectives %.2f\nsite_ns %.2f\nfingerprint_ns %.1f\nbox_ns %.1f\n", ms, collectives, site, fingerprint, box);
    return td_finish();
}
