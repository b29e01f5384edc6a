/* tests/cuda/test_nccl.c: the communicator's device side and plugins/cuda/nccl*.c, really run: 2 and 4 processes, a GPU made of threads each
 * (fake_gpu.c), a library that is NCCL as far as it goes (fake_nccl.c). Every kind, dtype and reduction against double precision; started ones
 * beside work of the compute stream, which delays show; factors; a rank that is killed, stopped, late or calls something else.
 */
#include "gpu_ranks.h"
#include "../../plugins/cuda/nccl_impl.h"
#include "fake_gpu.h"

size_t cublas_version(void) { return 130002; }


/* ---- the device, as plugin.c makes it, with the kernel that collectives need ----------------------------------------------------------------- */
typedef struct { td_dtype t; int64_t n; const void *in; void *out; double by; } scaling;

static void scale_now(void *of)
{
    scaling *s = of;
    for (int64_t i = 0; i < s->n; i++) {
        size_t at = (size_t)i * td_dtype_size(s->t);
        td__element_put(s->t, (char *)s->out + at, td__element_get(s->t, (const char *)s->in + at) * s->by);
    }
}

static void combine(td_dtype t, td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post, void *const *out, int outs)
{
    assert_true(op == TD_COMBINE_SUM && k == 1 && outs == 1);
    scaling *s = malloc(sizeof *s);
    *s = (scaling){ t, n, in[0], out[0], pre[0] * post };
    fake_gpu_enqueue(cuda_compute, scale_now, s);
}

const td_kernels td__cuda_kernels = { .name = "cuda", .combine = combine };
static const td_device_ops ops = {
    .name = "cuda", .kind = TD_CUDA, .count = cuda_count, .alloc = cuda_alloc, .free = cuda_free, .copy = cuda_copy, .synchronize = cuda_synchronize,
    .stream_new = cuda_stream_new, .stream_free = cuda_stream_free, .event_new = cuda_event_new, .event_record = cuda_event_record,
    .event_wait = cuda_event_wait, .event_free = cuda_event_free, .event_done = cuda_event_done, .kernels = &td__cuda_kernels, .comm = &nccl_comm_ops,
};

/* Each rank its own process, and the device is opened after the fork: threads do not survive one. */
static void prepare_rank(int rank, int compute_us, int communication_us)
{
    (void)rank;
    dev = &ops;
    cuda_host = &td__host;
    fake_gpu_delay_us[0] = compute_us, fake_gpu_delay_us[1] = communication_us;
    td__device_register(&ops);
    td__device_set_default((td_device){ TD_CPU, 0 });
}

static void well(rank_body *body, int size, int compute_us, int communication_us)
{
    all_well(size, on_gpu, &(plan){ body, compute_us, communication_us, NULL }, 60);
}

static void kinds(void **state) { (void)state; well(everything, 2, 0, 0), well(everything, 4, 0, 0); }
static void weights(void **state) { (void)state; well(factors, 2, 0, 0), well(factors, 4, 0, 200); }
static void streams(void **state) { (void)state; well(in_flight, 2, 1000, 0), well(in_flight, 2, 0, 1000), well(in_flight, 4, 0, 300); }

/* Each collective takes 100 ms: waited for at once they are exposed, when they have passed they are not. */
static int exposed(int rank, int size, void *arg)
{
    (void)arg;
    TD_SCOPE();
    td_tensor *x = make(TD_F32, 10, rank, 0);
    double comm_ms, exposed_ms, most = 0;
    for (int i = 0; i < 10 && most < 60; i++) {        /* several times: this machine may be busy with something else               */
        EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0 && td__comm_drain() == 0);
        td__comm_device_times(td_world(), &comm_ms, &exposed_ms);
        EXPECT(comm_ms > 90 && exposed_ms <= comm_ms + 1);
        most = exposed_ms > most ? exposed_ms : most;
        EXPECT(td_barrier(td_world()) == 0);           /* so that all ranks leave this loop together: what one sees all see          */
        EXPECT(td__comm_bytes(td_world(), &most, sizeof most, 0, "the longest") == 0);
    }
    EXPECT(most >= 60);
    td_work *work = td_all_reduce_start(td_world(), x, TD_SUM);
    while (!td_test(work))
        usleep(1000);
    EXPECT(td_wait(work) == 0 && td__comm_drain() == 0);
    td__comm_device_times(td_world(), &comm_ms, &exposed_ms);
    EXPECT(comm_ms > 90 && exposed_ms == 0);
    return size < 0;
}

static void times(void **state) { (void)state; well(exposed, 2, 0, 100000); }

static void alone(void **state)
{
    (void)state;
    well(everything, 1, 0, 0);
    setenv("TANDEM_COMM", "nccl", 1);
    well(everything, 1, 0, 100);
    well(in_flight, 1, 100, 0);
    unsetenv("TANDEM_COMM");
}

static void gone(void **state)
{
    (void)state;
    try("kill", 2, false, TD_ERR_PEER, 2, PARTS("rank 1 (pid ", "was killed or died", "waited in all_reduce(f32, 1000, cuda) #", " at gpu_ranks.h:",
                                                "its last was "));
    try("kill", 4, false, TD_ERR_PEER, 2, PARTS("rank 1 (pid ", "was killed or died"));
    try("exit", 2, false, TD_ERR_PEER, 2, PARTS("rank 1 (pid ", "was killed or died"));
    try("stop", 2, false, TD_ERR_PEER, 2.5, PARTS("rank 1 (pid ", "is stopped by a signal"));
    try("abort", 4, true, TD_ERR_ABORTED, 2, PARTS("rank 1 gave up", "no more of this"));
}

static void different(void **state)
{
    (void)state;
    try("count", 4, true, TD_ERR_MISMATCH, 2, PARTS("rank 1 called all_reduce(f32, 1001, cuda) #", "ranks 0, 2, 3 called all_reduce(f32, 1000, cuda) #", " at gpu_ranks.h:"));
    try("dtype", 2, true, TD_ERR_MISMATCH, 2, PARTS("rank 1 called all_reduce(f64, 1000, cuda)", "called all_reduce(f32, 1000, cuda)"));
    try("counts", 2, true, TD_ERR_MISMATCH, 2, PARTS("rank 1 sends 401 elements to rank 0, which expects 400 from it, in all_to_all(f32, uneven, cuda)"));
    try("kind", 4, true, TD_ERR_MISMATCH, 2, PARTS("rank 1 called broadcast(f32, 1000, root 0, cuda)", "called all_reduce(f32, 1000, cuda)"));
}

static void late(void **state)
{
    (void)state;
    setenv("TANDEM_TIMEOUT", "1.5", 1);
    try("late", 2, false, TD_ERR_TIMEOUT, 4, PARTS("rank 1 (pid ", "did not come to all_reduce(f32, 1000, cuda)", "within 1.5 s (TANDEM_TIMEOUT)"));
    unsetenv("TANDEM_TIMEOUT");
}

/* ---- the library ----------------------------------------------------------------------------------------------------------------------------------------- */
static int refused(int rank, int size, void *arg)
{
    (void)size;
    TD_SCOPE();
    td_tensor *x = make(TD_F32, 10, rank, 0);
    tell(rank, td_all_reduce(td_world(), x, TD_SUM));
    EXPECT(strstr(td_error_message(), arg));
    td_error_clear();
    EXPECT(td_barrier(td_world()) == 0);       /* collectives of host memory go on                                                 */
    return 0;
}

static int echo(int rank, int size, void *arg)
{
    (void)size, (void)arg;
    TD_SCOPE();
    td_tensor *x = make(TD_F32, 10, rank, 0);
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0 && td__comm_drain() == 0);
    EXPECT(go_on(x, x, false) == TD_ERR_PEER);
    EXPECT(strstr(td_error_message(), "remote process exited or there was a network error: fake detail"));
    return 0;
}

static int never_ends(int rank, int size, void *arg)
{
    (void)size, (void)arg;
    TD_SCOPE();
    td_tensor *x = make(TD_F32, 10, rank, 0);
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0 && td__comm_drain() == 0);
    EXPECT(go_on(x, x, false) == TD_ERR_TIMEOUT);
    EXPECT(strstr(td_error_message(), "waited 1.5 s (TANDEM_TIMEOUT) in all_reduce(f32, 10, cuda) #") && strstr(td_error_message(), "and it did not end"));
    return 0;
}

static int no_memory(int rank, int size, void *arg)
{
    (void)arg;
    td_storage *s = td__comm_storage(td_world(), gpu, 4000);
    EXPECT(s);
    td_tensor *x = td__tensor_on(s, TD_SHAPE(1000), TD_F32, 0);
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0);
    char *host = fetch(x);
    EXPECT(at(TD_F32, host, 999) == 0 && size == 2);
    free(host);
    td__tensor_unref(x);
    td__storage_unref(s);
    return rank < 0;
}

static double first_of(td_tensor *x)
{
    char *host = fetch(x);
    double v = at(TD_F32, host, 0);
    free(host);
    return v;
}

/* Two communicators of NCCL in a process, and memory registered with both: of before and after they were opened, given back before and after one is. */
static int in_groups(int rank, int size, void *arg)
{
    (void)arg;
    TD_SCOPE();
    td_storage *early = td__comm_storage(td_world(), gpu, 4000), *late;
    td_tensor *x = td__tensor_on(early, TD_SHAPE(1000), TD_F32, 0), *y = make(TD_F32, 10, rank, 0), *z = make(TD_F32, 10, rank, 0);
    const double mine = first_of(y);
    td_comm *g = td_comm_split(td_world(), size == 2 ? 0 : rank % 2, 0), *copy = td_comm_dup(td_world());
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0 && first_of(x) == 0);
    EXPECT(td_broadcast(g, y, td_size(g) - 1) == 0);
    late = td__comm_storage(g, gpu, 4000);
    td_tensor *w = td__tensor_on(late, TD_SHAPE(1000), TD_F32, 0);
    td_work *a = td_all_reduce_start(g, w, TD_SUM), *b = td_broadcast_start(copy, z, size - 1);
    EXPECT(td_wait(b) == 0 && td_wait(a) == 0 && first_of(w) == 0);
    EXPECT(td_all_reduce(g, x, TD_SUM) == 0);
    EXPECT(td_rank(g) != td_size(g) - 1 || first_of(y) == mine);
    EXPECT(rank != size - 1 || first_of(z) == mine);
    td__tensor_unref(x);
    td__storage_unref(early);
    EXPECT(td_comm_free(g) == 0);
    EXPECT(td_all_reduce(td_world(), w, TD_SUM) == 0 && td_all_reduce(copy, w, TD_SUM) == 0 && first_of(w) == 0);
    td__tensor_unref(w);
    td__storage_unref(late);
    return 0;
}

static void groups(void **state) { (void)state; well(in_groups, 2, 0, 0), well(in_groups, 4, 200, 0); }

static void with(const char *name, const char *text, rank_body *body, const char *arg)
{
    char kept[600];
    snprintf(kept, sizeof kept, "%s", getenv(name) ? getenv(name) : "");
    setenv(name, text, 1);
    int results[MAX_RANKS];
    run_ranks(2, on_gpu, &(plan){ body, 0, 0, (void *)(uintptr_t)arg }, 20, results);
    for (int r = 0; r < 2; r++)
        if (results[r])
            fail_msg("%s=%s: rank %d ended with %d: %s", name, text, r, results[r], shared->rank[r].sentence);
    if (*kept)
        setenv(name, kept, 1);
    else
        unsetenv(name);
}

static void libraries(void **state)
{
    (void)state;
    with("TANDEM_NCCL", "/nowhere/libnccl.so.2", refused, "NCCL cannot be opened (/nowhere/libnccl.so.2: ");
    with("TANDEM_NCCL", "libm.so.6", refused, "libm.so.6 is no NCCL that will do: it lacks ncclGetVersion");
    with("FAKE_NCCL", "version", refused, "is NCCL 2.18.5, and 2.19 is the oldest that will do: install a newer libnccl2");
    with("FAKE_NCCL", "error", echo, NULL);
    setenv("TANDEM_TIMEOUT", "1.5", 1);
    with("FAKE_NCCL", "hang", never_ends, NULL);
    unsetenv("TANDEM_TIMEOUT");
    with("FAKE_NCCL", "nomem", no_memory, NULL);
    with("FAKE_NCCL", "", no_memory, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds), cmocka_unit_test(weights), cmocka_unit_test(streams), cmocka_unit_test(times), cmocka_unit_test(alone),
        cmocka_unit_test(groups),
        cmocka_unit_test(gone), cmocka_unit_test(different), cmocka_unit_test(late), cmocka_unit_test(libraries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
