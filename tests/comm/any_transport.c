/* Collectives through the public functions, whatever carries them: run as a rank by a launcher (mpirun here).
 *
 *     any_transport BACKEND[/OR-THIS]   mismatch|counts|rows|kill|finish|return|sleep|sleep-long|abort: rank 1 does so, the others must be told;
 *                                       late: the last rank does not come; big: all send 80,000 bytes
 *
 * Values are small whole numbers, so sums are exact; bits are compared across ranks by reducing their differences. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <tandem.h>

#define EXPECT(what)                                                                                                 \
    do {                                                                                                             \
        if (!(what)) {                                                                                               \
            fprintf(stderr, "rank %d: %s:%d: not so: %s (%s)\n", td_rank(td_world()), __FILE__, __LINE__, #what,     \
                    td_error_message());                                                                             \
            _exit(99);                                                                                               \
        }                                                                                                            \
    } while (0)

static int rank, size;
static bool small;                             /* the transport carries no more than 64 KiB of a rank                             */
static char backend[16];

static double value(int r, int64_t i)
{
    return (double)((i * 7 + r * 13) % 31 - 15);
}

static double reduced(td_reduce op, int64_t i)
{
    double x = value(0, i);
    for (int r = 1; r < size; r++) {
        double v = value(r, i);
        x = op == TD_MIN ? (v < x ? v : x) : op == TD_MAX ? (v > x ? v : x) : x + v;
    }
    return op == TD_MEAN ? x / size : x;
}

static td_tensor *filled(int64_t n, td_dtype dtype, int64_t from)
{
    td_tensor *x = td_zeros(TD_SHAPE(n), TD_F64), *y = td_zeros(TD_SHAPE(n), dtype);
    for (int64_t i = 0; i < n; i++)
        ((double *)td_data(x))[i] = value(rank, from + i);
    td_assign(y, x);
    return y;
}

static double at(td_tensor *x, int64_t i)
{
    return td_at(x, TD_SHAPE(i));
}

static bool near(td_dtype t, double a, double b)
{
    double d = a > b ? a - b : b - a, m = b > 0 ? b : -b;
    return d <= (t == TD_F32 ? 1e-6 : t == TD_F64 ? 1e-14 : 0) * (1 + m);
}

static void one_size(int64_t n)
{
    static const td_dtype arith[] = { TD_F32, TD_F64, TD_I64, TD_I32 };
    td_comm *w = td_world();
    for (int t = 0; t < 4; t++)
        for (int op = TD_SUM; op <= TD_MAX; op++) {
            if (op == TD_MEAN && t >= 2)
                continue;
            TD_SCOPE();
            td_tensor *x = filled(n, arith[t], 0), *in = td_zeros(TD_SHAPE(n * size), arith[t]), *out = td_zeros(TD_SHAPE(n), arith[t]);
            td_assign(in, filled(n * size, arith[t], 0));
            EXPECT(td_all_reduce(w, x, (td_reduce)op) == 0);
            EXPECT(td_reduce_scatter(w, out, in, (td_reduce)op) == 0);
            for (int64_t i = 0; i < n; i += 1 + n / 500) {
                EXPECT(near(arith[t], at(x, i), reduced((td_reduce)op, i)));
                EXPECT(near(arith[t], at(out, i), reduced((td_reduce)op, n * rank + i)));
            }
        }
    static const td_dtype moved[] = { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I64, TD_I32 };
    for (int t = 0; t < 6; t++) {
        TD_SCOPE();
        td_tensor *x = filled(n, moved[t], 0), *all = td_zeros(TD_SHAPE(n * size), moved[t]);
        EXPECT(td_all_gather(w, all, x) == 0);
        EXPECT(td_broadcast(w, x, size - 1) == 0);
        for (int64_t i = 0; i < n; i += 1 + n / 500) {
            EXPECT(at(x, i) == value(size - 1, i));
            for (int r = 0; r < size; r++)
                EXPECT(at(all, n * r + i) == value(r, i));
        }
    }
}

/* Sums whose rounding shows the order: every rank must have the same bits. */
static void same_bits(void)
{
    TD_SCOPE();
    const int64_t n = small ? 10003 : 100003;
    td_tensor *x = td_randn(TD_SHAPE(n), 3, (uint64_t)rank);
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0);
    td_tensor *low = td_from(td_data(x), TD_SHAPE(n), TD_F32), *high = td_from(td_data(x), TD_SHAPE(n), TD_F32);
    EXPECT(td_all_reduce(td_world(), low, TD_MIN) == 0 && td_all_reduce(td_world(), high, TD_MAX) == 0);
    EXPECT(memcmp(td_data(low), td_data(high), (size_t)n * 4) == 0);
}

/* The same in memory that the ranks of a host reach: nothing is staged, and where hosts are several, theirs are the algorithms between them. */
static void in_shared_memory(int64_t n)
{
    td_comm *w = td_world();
    for (int op = TD_SUM; op <= TD_MAX; op++) {
        TD_SCOPE();
        td_tensor *x = td_zeros_shared(w, TD_SHAPE(n), TD_F32), *in = td_zeros_shared(w, TD_SHAPE(n * size), TD_F32);
        td_tensor *out = td_zeros_shared(w, TD_SHAPE(n), TD_F32);
        td_assign(x, filled(n, TD_F32, 0));
        td_assign(in, filled(n * size, TD_F32, 0));
        EXPECT(td_all_reduce(w, x, (td_reduce)op) == 0);
        EXPECT(td_reduce_scatter(w, out, in, (td_reduce)op) == 0);
        for (int64_t i = 0; i < n; i++) {
            EXPECT(near(TD_F32, at(x, i), reduced((td_reduce)op, i)));
            EXPECT(near(TD_F32, at(out, i), reduced((td_reduce)op, n * rank + i)));
        }
    }
    TD_SCOPE();
    td_tensor *x = td_zeros_shared(w, TD_SHAPE(n), TD_F64), *all = td_zeros_shared(w, TD_SHAPE(n * size), TD_F64);
    td_assign(x, filled(n, TD_F64, 0));
    EXPECT(td_all_gather(w, all, x) == 0);
    for (int root = 0; root < size; root++) {
        td_assign(x, filled(n, TD_F64, root));
        EXPECT(td_broadcast(w, x, root) == 0);
        for (int64_t i = 0; i < n; i++)
            EXPECT(at(x, i) == value(root, root + i));
    }
    for (int64_t i = 0; i < n * size; i++)
        EXPECT(at(all, i) == value((int)(i / n), i % n));
}

static void in_flight(void)
{
    enum { N = 10 };
    TD_SCOPE();
    td_tensor *x[N];
    td_work *work[N];
    for (int i = 0; i < N; i++) {
        x[i] = td_full(TD_SHAPE(5000), TD_F32, rank + i);
        work[i] = td_all_reduce_start(td_world(), x[i], TD_SUM);
    }
    for (int k = 0; k < N; k++) {
        int i = (k * 3 + 1) % N;
        while (k % 2 && !td_test(work[i]))
            usleep(100);
        EXPECT(td_wait(work[i]) == 0);
        EXPECT(at(x[i], 4999) == size * (size - 1) / 2 + size * i);
    }
}

/* Ranks of the same parity, the last one first; while the world's collectives are under way, too. */
static void groups(void)
{
    TD_SCOPE();
    td_comm *g = td_comm_split(td_world(), rank % 2, -rank), *same = td_comm_dup(td_world());
    EXPECT(g && same && td_size(same) == size);
    int n = td_size(g), sum = 0;
    EXPECT(n == (size + 1 - rank % 2) / 2 && td_comm_world_rank(g, td_rank(g)) == rank && td_comm_world_rank(g, n - 1) == rank % 2);
    for (int r = rank % 2; r < size; r += 2)
        sum += r;
    for (int i = 0; i < 5; i++) {
        TD_SCOPE();
        td_tensor *x = td_full(TD_SHAPE(300), TD_F32, rank), *y = td_full(TD_SHAPE(200), TD_F64, rank), *z = td_full(TD_SHAPE(7), TD_I64, rank);
        td_work *a = td_all_reduce_start(g, x, TD_SUM), *b = td_all_reduce_start(td_world(), y, TD_SUM), *c = td_broadcast_start(same, z, size - 1);
        EXPECT(td_wait(c) == 0 && td_wait(b) == 0 && td_wait(a) == 0);
        EXPECT(at(x, 299) == sum && at(y, 199) == size * (size - 1) / 2 && at(z, 6) == size - 1);
    }
    EXPECT(td_comm_free(g) == 0 && td_comm_free(same) == 0);
}

/* Everybody to everybody; rank 1 sends `more` elements to rank 0 than that waits for. */
static int exchange(int64_t more)
{
    int64_t in[16], out[16];
    for (int r = 0; r < size; r++)
        in[r] = 100 + (r == 0 ? more : 0), out[r] = 100;
    return td_all_to_all_uneven(td_world(), td_zeros(TD_SHAPE(100 * size), TD_F32), out, td_zeros(TD_SHAPE(100 * size + more), TD_F32), in);
}

/* Of as many rows together, but one more of the last rank's and one less of the first's. */
static int gathered(int64_t more)
{
    int64_t rows[16];
    for (int r = 0; r < size; r++)
        rows[r] = 100 + (r == 0 ? -more : r == size - 1 ? more : 0);
    return td_all_gather_uneven(td_world(), td_zeros(TD_SHAPE(100 * size), TD_F32), td_zeros(TD_SHAPE(rows[rank]), TD_F32), rows);
}

static int faulty(const char *fault)
{
    td_tensor *x = td_zeros(TD_SHAPE(1000), TD_F32), *y = td_zeros(TD_SHAPE(1001), TD_F32);
    for (int i = 0; i < 5; i++)
        EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0);
    if (rank == 1 && !strcmp(fault, "kill"))
        kill(getpid(), SIGKILL);
    if (rank == size - 1 && !strcmp(fault, "late"))
        return (int)sleep(4);
    if (rank == 1 && !strcmp(fault, "finish"))
        return td_finish();
    if (rank == 1 && !strcmp(fault, "return"))
        return 0;
    if (rank == 1 && !strncmp(fault, "sleep", 5))
        sleep(!strcmp(fault, "sleep") ? 3 : 60);
    if (rank == 1 && !strcmp(fault, "abort"))
        td_reshape(x, TD_SHAPE(7));
    if (!strcmp(fault, "big"))
        x = td_zeros(TD_SHAPE(20000), TD_F32);
    td_errors(TD_ERRORS_RETURN);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    int code = !strcmp(fault, "counts") ? exchange(rank == 1) : !strcmp(fault, "rows") ? gathered(rank == 1)
                                                                : td_all_reduce(td_world(), rank == 1 && !strcmp(fault, "mismatch") ? y : x, TD_SUM);
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("code %d after %.1f s: %s\n", code, (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec), td_error_message());
    fflush(stdout);
    return td_finish();
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    rank = td_rank(td_world()), size = td_size(td_world());
    EXPECT(argc >= 2 && strstr(argv[1], td_comm_backend_name(td_world())));
    snprintf(backend, sizeof backend, "%s", td_comm_backend_name(td_world()));
    small = !strcmp(td_comm_backend_name(td_world()), "store");
    if (argc > 2)
        return faulty(argv[2]);
    static const int64_t sizes[] = { 0, 1, 7, 2049, 70001 };
    for (int i = 0; i < 5; i++)
        one_size(small && sizes[i] * size > 8000 ? 8000 / size : sizes[i]);
    same_bits();
    in_shared_memory(2049);
    if (!small)
        in_shared_memory(70001);
    in_flight();
    groups();
    EXPECT(td_barrier(td_world()) == 0);
    EXPECT(td_finish() == 0);
    EXPECT(td_memory().live_tensors == 0 && td_memory().live_bytes == 0);
    td_init(&argc, &argv);                     /* and once more in the same process */
    EXPECT(td_size(td_world()) == size);
    in_flight();
    EXPECT(td_finish() == 0);
    if (rank == 0)
        printf("%s: all well on %d ranks\n", backend, size);
    return 0;
}
