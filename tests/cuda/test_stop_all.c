/* tests/cuda/test_stop_all.c: a bad index on one rank stops the step of all: two processes on the made-up GPU of device.c, with a td_ddp over both, whose
 * optimizer is plain or sharded, with the same weights in the end. The device's collectives are as simple as can be: memory that the processes share, and a meeting before and after.
 */
#include "../comm/ranks.h"
#include <sched.h>
#include <tandem.h>

extern int td__emulated_late;
void td__ddp_pace_forget(void);             /* ddp_impl.h and comm_room.h both have a td__entry                                            */

enum { RANKS = 2, ROOM = 1 << 16 };
typedef struct { _Atomic int came, round; int64_t count[RANKS]; char part[RANKS][ROOM]; float weights[8][128]; } table;
static table *meeting;
static int me, words;                          /* this rank; collectives of one f64                                                       */

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
    (void)index, (void)id, (void)p, (void)error, (void)size;
    EXPECT(ranks == RANKS);
    me = rank;
    *state = meeting;
    return 0;
}

static int start(void *state, const td_coll *c, void *begin, void *end, const td_patience *p, char *error, size_t size)
{
    (void)state, (void)begin, (void)end, (void)p, (void)error, (void)size;
    const bool scatters = c->kind == TD_COLL_REDUCE_SCATTER, sums = scatters || c->kind == TD_COLL_ALL_REDUCE, gathers = c->kind == TD_COLL_ALL_GATHER;
    const int64_t count = c->count * (scatters ? RANKS : 1), first = scatters ? me * c->count : 0;
    const size_t each = td_dtype_size(c->dtype), bytes = (size_t)count * each;
    EXPECT(bytes <= ROOM && (c->kind == TD_COLL_BROADCAST || sums || gathers));
    words += c->dtype == TD_F64;
    memcpy(meeting->part[me], c->in, bytes);
    meeting->count[me] = c->count;
    for (int64_t i = 0; sums && i < count; i++) {
        char *at = meeting->part[me] + (size_t)i * each;
        td__element_put(c->dtype, at, td__element_get(c->dtype, at) * c->pre);
    }
    meet();
    EXPECT(meeting->count[0] == meeting->count[1]);
    if (c->kind == TD_COLL_BROADCAST)
        memcpy(c->out, meeting->part[c->root], bytes);
    for (int r = 0; gathers && r < RANKS; r++)
        memcpy((char *)c->out + (size_t)r * bytes, meeting->part[r], bytes);
    for (int64_t i = 0; sums && i < c->count; i++) {
        const size_t at = (size_t)(first + i) * each;
        const double a = td__element_get(c->dtype, meeting->part[0] + at), b = td__element_get(c->dtype, meeting->part[1] + at);
        td__element_put(c->dtype, (char *)c->out + (size_t)i * each, (c->op == TD_MAX ? (a > b ? a : b) : a + b) * c->post);
    }
    meet();
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

/* ---- training ----------------------------------------------------------------------------------------------------------------------------- */
enum { ROWS = 7, WIDTH = 4, OUT = 5, ALL = ROWS * WIDTH + OUT * WIDTH + OUT };
typedef struct { td_module *net; td_ddp *ddp; td_optim *opt; } training;

static const int64_t good[] = { 1, 2, 6 }, bad[] = { 1, 77, 6 }, targets[] = { 0, 4, 2 };

static td_tensor *loss_of(training *t, const int64_t *ids)
{
    return td_cross_entropy(td_forward(t->net, td_from(ids, TD_SHAPE(3), TD_I64)), td_from(targets, TD_SHAPE(3), TD_I64), NULL);
}

static void weights(training *t, float *into)
{
    const td_tensors p = td_parameters(t->net);
    for (size_t i = 0; i < p.n; into += td_numel(p.list[i++]))
        EXPECT(td_copy_out(p.list[i], into, (size_t)td_numel(p.list[i]) * sizeof *into) == 0);
}

static void good_step(training *t)
{
    TD_SCOPE();
    EXPECT(td_backward(loss_of(t, good)) == 0);
    EXPECT(td_optim_step(t->opt) == 0);
}

/* Without a look at the device between backward and step rank 1's step is as everybody's: it writes nothing and counts. After a look rank 1 refuses, and
 * counts. twice: a good backward follows the bad one before the step. Weights agree to the bit in the end. */
static int body(int rank, int size, void *arg)
{
    const int first = *(int *)arg & 1, look = *(int *)arg & 2, twice = *(int *)arg & 4, shard = *(int *)arg & 8;
    float before[ALL], after[ALL];
    (void)size;
    td__device_set_default((td_device){ TD_CUDA, 0 });
    td_seed(3);
    training t = { .net = td_nn_sequential(td_nn_embedding(ROWS, WIDTH, NULL), td_nn_linear(WIDTH, OUT, NULL)) };
    t.ddp = td_ddp_new(t.net, &(td_ddp_opts){ .first_bucket_bytes = 64, .bucket_bytes = 64, .shard_optimizer = shard });
    t.opt = td_adamw_new(td_parameters(t.net), &(td_adamw_opts){ .lr = 0.1f });
    EXPECT(!td_error_pending());
    if (!first)
        good_step(&t);
    EXPECT(words == !first);                   /* one for each backward                                                               */
    weights(&t, before);
    td__emulated_late = 1000;
    {
        TD_SCOPE();
        EXPECT(td_backward(loss_of(&t, rank == 1 ? bad : good)) == 0);
        if (look && rank == 1) {               /* told here and forgotten here: the word of the batch stays                             */
            EXPECT(td_synchronize((td_device){ TD_CUDA, 0 }) < 0);
            if (twice)
                td_error_clear();
        }
        if (twice)
            EXPECT(td_backward(loss_of(&t, good)) == 0);
        td__emulated_late = 0;                 /* it could know, but must not refuse alone                                                */
        const int code = td_optim_step(t.opt);
        EXPECT(look && rank == 1 && !twice ? code < 0 : code == 0);
    }
    for (size_t i = 0; i < td_parameters(t.net).n; i++)        /* as td_copy_out, which would tell of the index                              */
        memcpy(after + (i == 0 ? 0 : i == 1 ? ROWS * WIDTH : ROWS * WIDTH + OUT * WIDTH), td__ptr(td_parameters(t.net).list[i]),
               (size_t)td_numel(td_parameters(t.net).list[i]) * sizeof(float));
    EXPECT(memcmp(before, after, sizeof before) == 0);
    EXPECT(td_step_get() == (first ? 1 : 2));  /* a lost step counts on every rank                                                     */
    if (!twice || !look) {
        TD_SCOPE();
        EXPECT(td_backward(loss_of(&t, good)) < 0);
        EXPECT(strstr(td_error_message(), "the id at position (1) is 77"));
        td_error_clear();
    }
    good_step(&t);
    weights(&t, after);
    EXPECT(memcmp(before, after, sizeof before) != 0);
    EXPECT(td__comm_bytes(td_world(), memcpy(before, after, sizeof before), sizeof before, 0, "weights of rank 0") == 0);
    EXPECT(memcmp(before, after, sizeof before) == 0);
    float *plain = meeting->weights[*(int *)arg & 7];
    if (!shard && rank == 0)
        memcpy(plain, after, sizeof after);
    EXPECT(!shard || memcmp(plain, after, sizeof after) == 0);
    td_optim_free(t.opt);
    td_ddp_free(t.ddp);
    td_module_free(t.net);
    td__ddp_pace_forget();
    return 0;
}

static void all_stop(void **state)
{
    (void)state;
    for (int how = 0; how < 16; how++)         /* 8 and more: sharded                                                                 */
        if (!((how & 1) && (how & 2)))         /* the first step of a td_ddp, refused on one rank, is another story                          */
            all_well(RANKS, body, &how, 30);
}

int main(void)
{
    meeting = mmap(NULL, sizeof *meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ((td_device_ops *)(uintptr_t)td__device_registered(TD_CUDA))->comm = &shared_memory;
    const struct CMUnitTest tests[] = { cmocka_unit_test(all_stop) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
