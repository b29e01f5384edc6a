/* tests/cuda/test_capture_ranks.c: collectives of a device's memory in a captured step: one process alone, and two on the made-up GPU of device.c, whose
 * collectives are memory that both share. A launch of the graph is watched as one collective more, so a rank that calls another one instead is told.
 */
#include "../comm/ranks.h"
#include "emulate_graph.h"
#include <sched.h>
#include <tandem.h>

enum { RANKS = 2, ROOM = 1 << 12, N = 6 };
typedef struct { _Atomic int came, round; char part[RANKS][ROOM]; } table;
static table *meeting;

static void meet(void)
{
    const int round = atomic_load(&meeting->round);
    if (atomic_fetch_add(&meeting->came, 1) + 1 == RANKS) {
        atomic_store(&meeting->came, 0);
        atomic_fetch_add(&meeting->round, 1);
    }
    while (atomic_load(&meeting->round) == round)
        sched_yield();
}

static int load(char *error, size_t size) { (void)error, (void)size; return 0; }
static int make_id(char id[TD_COMM_ID], char *error, size_t size) { (void)error, (void)size; memset(id, 0, TD_COMM_ID); return 0; }
static int open_it(int index, const char id[TD_COMM_ID], int rank, int ranks, const td_patience *p, void **state, char *error, size_t size)
{
    (void)index, (void)id, (void)rank, (void)ranks, (void)p, (void)error, (void)size;
    *state = meeting;
    return 0;
}

/* Sums of f32, and copies of them. */
static void carry_out(void *of)
{
    const td_coll *c = of;
    const size_t bytes = (size_t)c->count * 4;
    EXPECT(c->dtype == TD_F32 && bytes <= ROOM);
    memcpy(meeting->part[td_rank(td_world())], c->in, bytes);
    meet();
    for (int64_t i = 0; i < c->count; i++) {
        const float a = ((float *)(void *)meeting->part[0])[i], b = ((float *)(void *)meeting->part[1])[i];
        ((float *)c->out)[i] = c->kind == TD_COLL_BROADCAST ? a : a + b;
    }
    meet();
}

static int start(void *state, const td_coll *c, void *begin, void *end, const td_patience *p, char *error, size_t size)
{
    (void)state, (void)begin, (void)end, (void)p, (void)error, (void)size;
    td_coll *kept = malloc(sizeof *kept);      /* as long as the process, like the graph's own arguments                            */
    *kept = *c;
    if (td__emulated_call(carry_out, kept))
        return 1;
    carry_out(kept);
    free(kept);
    return 0;
}

static int check(void *state, char *error, size_t size) { (void)state, (void)error, (void)size; return 0; }
static void give_up(void *state) { (void)state; }
static int close_it(void *state, bool well, const td_patience *p, char *error, size_t size)
{
    (void)state, (void)well, (void)p, (void)error, (void)size;
    return 0;
}
static void *take(int index, size_t bytes) { (void)index; return calloc(1, bytes); }
static void give(int index, void *block) { (void)index; free(block); }
static void *timer(int index) { (void)index; return td__calloc(sizeof(double)); }
static double elapsed(int index, void *from, void *to) { (void)index, (void)from, (void)to; return 0; }
static const td_device_comm shared_memory = { "shared", load, make_id, open_it, start, check, give_up, close_it, take, give, timer, elapsed };

/* ---- the step ------------------------------------------------------------------------------------------------------------------------------- */

/* Twice the sum over the ranks of three times the input; one collective blocking, one started. */
static td_tensor *step(td_tensors in, void *user)
{
    TD_NO_GRAD();
    td_tensor *x = td_scale(in.list[0], 3);
    if (td_all_reduce(td_world(), x, TD_SUM))
        return td_scale(x, 0);
    td_tensor *y = td_scale(x, 2);
    td_work *work = td_broadcast_start(td_world(), y, 0);
    *(int *)user += 1;
    td_wait(work);
    return td_scale(y, 1);
}

static bool gives(td_tensor *y, double value)
{
    float host[N];
    return td_copy_out(y, host, sizeof host) == 0 && host[0] == (float)value && host[N - 1] == (float)value;
}

static int replayed(int rank, int size, void *arg)
{
    const bool other = *(bool *)arg;
    int calls = 0;
    td__device_set_default((td_device){ TD_CUDA, 0 });
    td_tensor *x = td_keep(td_full(TD_SHAPE(N), TD_F32, rank + 1));
    const double sum = size * (size + 1) / 2.0;
    td_graph *g = td_capture(step, &calls, (td_tensors){ &x, 1 }, NULL);
    EXPECT(td_error_pending() == 0 && calls == 1);
    const uint64_t before = td_world()->seq;
    for (int turn = 1; turn <= 3; turn++) {
        td_fill(x, rank + 1 + turn);
        EXPECT(gives(td_replay(g, (td_tensors){ &x, 1 }), 6 * (sum + turn * size)));
        EXPECT(td_world()->seq == before + 2 * (uint64_t)turn);       /* each of the two is one collective more                            */
    }
    EXPECT(calls == 1 && td__comm_drain() == 0);
    if (other) {                               /* rank 1 calls two collectives where rank 0 launches two                              */
        td_tensor *y = td_full(TD_SHAPE(N), TD_F32, 1);
        if (rank == 0)
            td_replay(g, (td_tensors){ &x, 1 });
        int code = rank == 0 ? td_error_pending() : td_broadcast(td_world(), y, 0);
        code = code || rank == 0 ? code : td_broadcast(td_world(), y, 0);
        code = code ? code : td_barrier(td_world());
        EXPECT(code == TD_ERR_MISMATCH && strstr(td_error_message(), "rank 1 called broadcast(f32, 6, root 0, cuda) #"));
        EXPECT(strstr(td_error_message(), "replay of a captured step #"));
        td_error_clear();
    }
    td_graph_free(g);
    td_release(x);
    return 0;
}

static void replays(void **state)
{
    (void)state;
    all_well(1, replayed, &(bool){ false }, 30);
    all_well(RANKS, replayed, &(bool){ false }, 30);
    all_well(RANKS, replayed, &(bool){ true }, 30);
}

int main(void)
{
    meeting = mmap(NULL, sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ((td_device_ops *)(uintptr_t)td__device_registered(TD_CUDA))->comm = &shared_memory;
    const struct CMUnitTest tests[] = { cmocka_unit_test(replays) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
