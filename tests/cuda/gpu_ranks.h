/* tests/cuda/gpu_ranks.h: what ranks with a GPU each do in tests: with made-up ones (test_nccl.c) and on a real one (tests/gpu/test_ranks.c).
 * Before a body runs, `prepare_rank` of the file that includes this has set `dev`.
 */
#ifndef GPU_RANKS_H
#define GPU_RANKS_H
#include "../comm/ranks.h"

static const td_device gpu = { TD_CUDA, 0 };
static const td_device_ops *dev;
static void prepare_rank(int rank, int compute_us, int communication_us);

/* ---- tensors on it ---------------------------------------------------------------------------------------------------------------------------- */
static double value(int rank, int64_t i, int64_t salt)
{
    return (double)((i * 7 + rank * 13 + salt * 5) % 31 - 15);
}

static double moved(td_dtype t, double v)
{
    return t == TD_BOOL ? v > 0 : t == TD_U8 ? (uint8_t)(v + 100) : v;
}

static td_tensor *make(td_dtype t, int64_t n, int rank, int64_t salt)
{
    td_tensor *x = td__scoped_tensor(td__tensor_new(TD_SHAPE(n), t, gpu));
    char *host = malloc((size_t)n * td_dtype_size(t) + 1);
    for (int64_t i = 0; i < n; i++) {
        double v = moved(t, value(rank, i, salt));
        if (t == TD_U8 || t == TD_BOOL)
            host[i] = (char)(uint8_t)v;
        else
            td__element_put(t, host + (size_t)i * td_dtype_size(t), v);
    }
    EXPECT(dev->copy(0, td__ptr(x), false, host, true, (size_t)n * td_dtype_size(t)) == 0);
    free(host);
    return x;
}

static char *fetch(td_tensor *x)
{
    size_t bytes = (size_t)td_numel(x) * td_dtype_size(x->dtype);
    char *host = malloc(bytes + 1);
    EXPECT(dev->copy(0, host, true, td__ptr(x), false, bytes) == 0);
    return host;
}

static double at(td_dtype t, const char *host, int64_t i)
{
    return t == TD_U8 || t == TD_BOOL ? (double)((const uint8_t *)host)[i] : td__element_get(t, host + (size_t)i * td_dtype_size(t));
}

static double reduced(td_reduce op, int size, int64_t i, int64_t salt)
{
    double r = value(0, i, salt);
    for (int k = 1; k < size; k++) {
        double v = value(k, i, salt);
        r = op == TD_MIN ? (v < r ? v : r) : op == TD_MAX ? (v > r ? v : r) : op == TD_PRODUCT ? r * v : r + v;
    }
    return op == TD_MEAN ? r / size : r;
}

/* all: how large the terms are that were rounded */
static bool near(td_dtype t, double got, double expected, double all)
{
    double unit = t == TD_F16 ? 1e-3 : t == TD_BF16 ? 8e-3 : t == TD_F32 ? 1e-6 : t == TD_F64 ? 1e-14 : 0;
    return fabs(got - expected) <= unit * (1 + all);
}

static bool same(td_dtype t, double got, double expected)
{
    return near(t, got, expected, fabs(expected));
}

/* ---- every kind ---------------------------------------------------------------------------------------------------------------------------------- */
static const td_dtype arith[] = { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I64, TD_I32 };
static const td_dtype every[] = { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I64, TD_I32, TD_U8, TD_BOOL };
static const int64_t sizes[] = { 0, 1, 7, 40001 };

static void reduces(int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(arith); t++)
        for (size_t k = 0; k < TD_COUNT(sizes); k++)
            for (int op = TD_SUM; op <= TD_PRODUCT; op++) {
                if (op == TD_MEAN && !td__is_real(arith[t]))
                    continue;
                TD_SCOPE();
                const int64_t n = sizes[k], step = n > 1000 ? 37 : 1;
                if (op == TD_PRODUCT && size > 2 && td__is_half(arith[t]))
                    continue;                  /* more digits than these have                                                     */
                td_tensor *x = make(arith[t], n, rank, op), *one = make(arith[t], n, rank, op), *in = make(arith[t], n * size, rank, 3), *out = make(arith[t], n, rank, 9);
                EXPECT(td_all_reduce(td_world(), x, (td_reduce)op) == 0);
                EXPECT(td_reduce_scatter(td_world(), out, in, (td_reduce)op) == 0);
                EXPECT(td_reduce_to(td_world(), one, (td_reduce)op, size - 1) == 0);
                char *a = fetch(x), *b = fetch(out), *c = fetch(one);
                for (int64_t i = 0; i < n; i += step) {
                    EXPECT(same(arith[t], at(arith[t], a, i), reduced((td_reduce)op, size, i, op)));
                    EXPECT(same(arith[t], at(arith[t], b, i), reduced((td_reduce)op, size, n * rank + i, 3)));
                    EXPECT(rank == size - 1 ? same(arith[t], at(arith[t], c, i), reduced((td_reduce)op, size, i, op))
                                            : at(arith[t], c, i) == value(rank, i, op));
                }
                free(a);
                free(b);
                free(c);
            }
}

static void moves(int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(every); t++)
        for (size_t k = 0; k < TD_COUNT(sizes); k++) {
            TD_SCOPE();
            const int64_t n = sizes[k], step = n > 1000 ? 37 : 1;
            td_tensor *x = make(every[t], n, rank, 4), *whole = make(every[t], n * size, rank, 5), *out = make(every[t], n * size, rank, 6);
            td_tensor *own = td__scoped_tensor(td__tensor_on(whole->storage, TD_SHAPE(n), every[t], n * rank));
            EXPECT(td_all_gather(td_world(), out, x) == 0);
            EXPECT(td_all_gather(td_world(), whole, own) == 0);       /* in place                                                  */
            EXPECT(td_broadcast(td_world(), x, size - 1) == 0);
            char *a = fetch(x), *b = fetch(out), *c = fetch(whole);
            for (int64_t i = 0; i < n * size; i += step) {
                EXPECT(i >= n || at(every[t], a, i) == moved(every[t], value(size - 1, i, 4)));
                EXPECT(at(every[t], b, i) == moved(every[t], value((int)(i / n), i % n, 4)));
                EXPECT(at(every[t], c, i) == moved(every[t], value((int)(i / n), i, 5)));
            }
            free(a);
            free(b);
            free(c);
        }
}

/* Everybody's part of `x`, element by element: what `from` has at from_at + i. */
static bool holds(td_tensor *x, int64_t at_x, int64_t n, int from, int64_t from_at, int64_t salt)
{
    char *host = fetch(x);
    bool all = true;
    for (int64_t i = 0; i < n; i += n > 1000 ? 37 : 1)
        all = all && at(x->dtype, host, at_x + i) == moved(x->dtype, value(from, from_at + i, salt));
    free(host);
    return all;
}

/* gather, scatter, all_to_all, and parts of 0, 1, 2 … times n */
static void parts(int rank, int size)
{
    td_comm *w = td_world();
    for (size_t t = 0; t < TD_COUNT(every); t++)
        for (size_t k = 0; k < TD_COUNT(sizes); k++) {
            TD_SCOPE();
            const int64_t n = sizes[k];
            const int root = (int)(t % (size_t)size);
            td_tensor *x = make(every[t], n, rank, 1), *whole = make(every[t], n * size, rank, 2), *out = make(every[t], n * size, rank, 3);
            EXPECT(td_gather_to(w, rank == root ? out : NULL, x, root) == 0);
            for (int r = 0; r < size; r++)
                EXPECT(rank == root ? holds(out, r * n, n, r, 0, 1) : holds(out, r * n, n, rank, r * n, 3));
            EXPECT(td_scatter_from(w, x, rank == root ? whole : NULL, root) == 0);
            EXPECT(holds(x, 0, n, root, rank * n, 2));
            EXPECT(td_all_to_all(w, out, whole) == 0);
            for (int r = 0; r < size; r++)
                EXPECT(holds(out, r * n, n, r, rank * n, 2));
            EXPECT(td_all_to_all(w, whole, whole) == 0);               /* in place                                                  */
            for (int r = 0; r < size; r++)
                EXPECT(holds(whole, r * n, n, r, rank * n, 2));
            int64_t rows[MAX_RANKS], to[MAX_RANKS], from[MAX_RANKS], all = 0, sent = 0, come = 0, at_r = 0;
            for (int r = 0; r < size; r++) {
                rows[r] = r * n, all += rows[r];
                to[r] = (rank + r) % 3 * n, sent += to[r];
                from[r] = (rank + r) % 3 * n, come += from[r];
            }
            td_tensor *mine = make(every[t], rows[rank], rank, 4), *everything = make(every[t], all, rank, 5);
            EXPECT(td_all_gather_uneven(w, everything, mine, rows) == 0);
            for (int r = 0; r < size; at_r += rows[r++])
                EXPECT(holds(everything, at_r, rows[r], r, 0, 4));
            td_tensor *in = make(every[t], sent, rank, 6), *got = make(every[t], come, rank, 7);
            td_work *work = td_all_to_all_uneven_start(w, got, from, in, to);
            EXPECT(td_wait(work) == 0);
            at_r = 0;
            for (int r = 0; r < size; at_r += from[r++]) {
                int64_t there = 0;
                for (int i = 0; i < rank; i++)
                    there += (r + i) % 3 * n;
                EXPECT(holds(got, at_r, from[r], r, there, 6));
            }
        }
}

static int everything(int rank, int size, void *arg)
{
    (void)arg;
    reduces(rank, size);
    moves(rank, size);
    parts(rank, size);
    td_coll barrier = { .kind = TD_COLL_BARRIER, .device = gpu, .pre = 1, .post = 1 };
    EXPECT(td__coll_run(td_world(), &barrier) == 0 && td_barrier(td_world()) == 0);
    EXPECT(td__comm_drain() == 0);
    return 0;
}

/* ---- factors -------------------------------------------------------------------------------------------------------------------------------------- */
static int factors(int rank, int size, void *arg)
{
    (void)arg;
    static const td_dtype types[] = { TD_F64, TD_F32, TD_F16, TD_BF16 };
    enum { N = 1003 };
    for (int t = 0; t < 4; t++)
        for (int scatter = 0; scatter < 2; scatter++)
            for (int odd = 0; odd < 2; odd++) {
                TD_SCOPE();
                const td_dtype type = types[t];
                const int64_t n = scatter ? (int64_t)N * size : N;
                const double post = odd ? 1.0 / 3 : 0.25;
                char *host = malloc((size_t)n * td_dtype_size(type));
                for (int64_t i = 0; i < n; i++)
                    td__element_put(type, host + (size_t)i * td_dtype_size(type), rank == 1 ? NAN : value(rank, i, 1));
                td_tensor *in = td__scoped_tensor(td__tensor_new(TD_SHAPE(n), type, gpu)), *out = make(type, N, rank, 2);
                EXPECT(dev->copy(0, td__ptr(in), false, host, true, (size_t)n * td_dtype_size(type)) == 0);
                free(host);
                td_coll coll = { .kind = scatter ? TD_COLL_REDUCE_SCATTER : TD_COLL_ALL_REDUCE, .dtype = type, .device = gpu, .in = td__ptr(in),
                                 .out = scatter ? td__ptr(out) : td__ptr(in), .count = N, .pre = rank == 1 ? 0 : rank + 1, .post = post };
                td_work *work = td__coll_start(td_world(), &coll);
                make(type, n, rank, 7);                /* memory that is still being sent must not be what this one gets           */
                EXPECT(td__work_wait(work, NULL) == 0);
                char *got = fetch(scatter ? out : in), *left = fetch(in);
                for (int64_t i = 0; i < N; i++) {
                    double expected = 0, all = 0;          /* 16 bits: each part is rounded                                  */
                    for (int r = 0; r < size; r++) {
                        double part = r == 1 ? 0 : (r + 1) * value(r, scatter ? (int64_t)N * rank + i : i, 1) * post;
                        expected += part;
                        all += fabs(part);
                    }
                    EXPECT(near(type, at(type, got, i), expected, all));
                    if (scatter)                                       /* what was sent is as it was                                 */
                        EXPECT(rank == 1 ? isnan(at(type, left, i)) : at(type, left, i) == value(rank, i, 1));
                }
                free(got);
                free(left);
            }
    TD_SCOPE();
    td_tensor *x = make(TD_I32, 10, rank, 0);
    td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = TD_I32, .device = gpu, .in = td__ptr(x), .out = td__ptr(x), .count = 10, .pre = 1, .post = 1 };
    EXPECT(td__coll_run(td_world(), &coll) == 0);
    return 0;
}

/* ---- streams -------------------------------------------------------------------------------------------------------------------------------------- */
/* Twice, on the compute stream. */
static void twice(td_tensor *x)
{
    void *p = td__ptr(x);
    dev->kernels->combine(TD_F32, TD_COMBINE_SUM, td_numel(x), 1, (const void *const *)&p, &(double){ 2 }, 1, &p, 1);
}

/* Chains of kernel, all-reduce, kernel; the host waits for nothing until the end. */
static int in_flight(int rank, int size, void *arg)
{
    (void)arg;
    enum { CHAINS = 90, N = 100 };             /* more than the ring has room for                                                 */
    td_work *work[CHAINS];
    td_tensor *x[CHAINS];
    TD_SCOPE();
    for (int i = 0; i < CHAINS; i++) {
        TD_SCOPE();
        x[i] = td_keep(make(TD_F32, N, rank, i));
        twice(x[i]);
        work[i] = td_all_reduce_start(td_world(), x[i], TD_SUM);
    }
    for (int k = 0; k < CHAINS; k++) {
        int i = (k * 7 + 3) % CHAINS;
        while (i % 30 == 29 && !td_test(work[i]))
            usleep(100);
        EXPECT(td_wait(work[i]) == 0);
        twice(x[i]);
    }
    for (int i = 0; i < CHAINS; i++) {
        char *host = fetch(x[i]);
        for (int64_t j = 0; j < N; j++)
            EXPECT(at(TD_F32, host, j) == 4 * reduced(TD_SUM, size, j, i));
        free(host);
        td_release(x[i]);
    }
    td_work *last;
    {
        TD_SCOPE();
        last = td_all_reduce_start(td_world(), make(TD_F32, 50000, rank, 1), TD_MAX);   /* its tensor dies before it ends          */
    }
    EXPECT(td_wait(last) == 0);
    double comm_ms, exposed_ms;
    EXPECT(td__comm_drain() == 0);
    td__comm_device_times(td_world(), &comm_ms, &exposed_ms);
    EXPECT(comm_ms > 0 && exposed_ms >= 0);
    td__comm_device_times(td_world(), &comm_ms, &exposed_ms);
    EXPECT(comm_ms == 0 && exposed_ms == 0);
    td_storage *s = td__comm_storage(td_world(), gpu, 1000);
    float zero[250];
    EXPECT(s && dev->copy(0, zero, true, s->data, false, 1000) == 0 && zero[0] == 0 && zero[249] == 0);
    td__storage_unref(s);
    EXPECT(td__comm_drain() == 0);
    return 0;
}

/* ---- how tests run them ---------------------------------------------------------------------------------------------------------------------------- */
typedef struct { rank_body *body; int compute_us, communication_us; void *arg; } plan;

static int on_gpu(int rank, int size, void *arg)
{
    const plan *p = arg;
    prepare_rank(rank, p->compute_us, p->communication_us);
    return p->body(rank, size, p->arg);
}

/* ---- faults ------------------------------------------------------------------------------------------------------------------------------------------ */
enum { GUILTY = 1 };
static useconds_t late_us = 4000000;
static double fault_seconds = 5;               /* that an error may take to come                                                  */

static void tell(int rank, int code)
{
    shared->rank[rank].error = code;
    shared->rank[rank].told = td__now();
    snprintf(shared->rank[rank].sentence, sizeof shared->rank[rank].sentence, "%s", td_error_message());
}

/* What the others do: start, wait for nothing, and read, which is where a hang would show. */
static int go_on(td_tensor *x, td_tensor *y, bool barrier)
{
    td_work *work = barrier ? td_broadcast_start(td_world(), x, 0) : td_all_reduce_start(td_world(), x, TD_SUM);
    int code = td_wait(work);
    if (!code) {
        free(fetch(y));
        for (double end = td__now() + fault_seconds; !code && td__now() < end; usleep(1000))
            code = td_error_pending();
    }
    return code;
}

static int faulty(int rank, int size, void *arg)
{
    (void)size;
    const char *fault = arg;
    TD_SCOPE();
    td_tensor *x = make(TD_F32, 1000, rank, 0), *z = make(TD_F32, 1001, rank, 0), *y = make(TD_F64, 1000, rank, 0);
    for (int i = 0; i < 3; i++)
        EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0);
    EXPECT(td__comm_drain() == 0 && td_barrier(td_world()) == 0);
    shared->rank[rank].at = td__now();
    if (rank == GUILTY) {
        if (!strcmp(fault, "kill"))
            kill(getpid(), SIGKILL);
        if (!strcmp(fault, "stop"))
            kill(getpid(), SIGSTOP);
        if (!strcmp(fault, "exit"))
            _exit(0);
        if (!strcmp(fault, "late")) {
            usleep(late_us);
            return 0;
        }
        if (!strcmp(fault, "abort"))
            td_abort(td_world(), "no more of this");
    }
    if (!strcmp(fault, "counts")) {            /* rank 1 sends one more than rank 0 waits for                                     */
        const int64_t in[] = { 400 + (rank == GUILTY), 600 - (rank == GUILTY) }, out[] = { rank == GUILTY ? 600 : 400, rank == GUILTY ? 599 : 400 };
        tell(rank, td_all_to_all_uneven(td_world(), rank == GUILTY ? make(TD_F32, 1199, rank, 0) : make(TD_F32, 800, rank, 0), out, x, in));
        td_error_clear();
        return 0;
    }
    td_tensor *mine = rank != GUILTY ? x : !strcmp(fault, "count") ? z : !strcmp(fault, "dtype") ? y : x;
    tell(rank, go_on(mine, x, rank == GUILTY && !strcmp(fault, "kind")));
    td_error_clear();
    EXPECT(td_error_pending() == 0);
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == shared->rank[rank].error);   /* and so it stays                                   */
    EXPECT(!strcmp(td_error_message(), shared->rank[rank].sentence));
    return 0;
}

#define PARTS(...) (const char *const[]){ __VA_ARGS__, NULL }

static void try(const char *fault, int size, bool guilty_told, int code, double limit, const char *const *parts)
{
    int results[MAX_RANKS];
    run_ranks(size, on_gpu, &(plan){ faulty, 0, 0, (void *)(uintptr_t)fault }, limit + 10, results);
    for (int r = 0; r < size; r++) {
        const char *text = shared->rank[r].sentence;
        if (r == GUILTY && !guilty_told)
            continue;
        if (results[r] || shared->rank[r].error != code || shared->rank[r].told - shared->rank[r].at > limit)
            fail_msg("%s: rank %d ended with %d, code %d after %.2f s: %s", fault, r, results[r], shared->rank[r].error,
                     shared->rank[r].told - shared->rank[r].at, text);
        for (int i = 0; parts[i]; i++)
            if (!strstr(text, parts[i]))
                fail_msg("%s: rank %d: no \"%s\" in: %s", fault, r, parts[i], text);
        if (strcmp(text, shared->rank[0].sentence))
            fail_msg("%s: ranks tell different things:\n%s\n%s", fault, shared->rank[0].sentence, text);
    }
}
#endif
