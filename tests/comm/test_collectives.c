/* Every collective over shared memory against a reference in double precision: dtypes, sizes 0, 1, odd, at and beyond the limits of the
 * small and staged ways, in arenas, in private memory, mixed; 1 to 4 ranks, and 8 once. The result's bits are the same on all ranks. */
#include "ranks.h"

typedef struct { int memory; } setup;          /* 0: private, 1: arena, 2: odd ranks in arenas */

static const td_dtype arith[] = { TD_F32, TD_F64, TD_I64, TD_I32 };
static const td_dtype every[] = { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I64, TD_I32, TD_U8, TD_BOOL };
static const int64_t sizes[] = { 0, 1, 7, 1000, 2049, 70001, 140003 };

/* Small whole numbers: sums are exact in every dtype that is summed, so the reference is exact, too. */
static double value(int rank, int64_t i, int64_t salt)
{
    return (double)((i * 7 + rank * 13 + salt * 5) % 31 - 15);
}

static td_tensor *make(const setup *s, int rank, int64_t n, td_dtype dtype)
{
    bool arena = s->memory == 1 || (s->memory == 2 && rank % 2);
    return arena ? td_zeros_shared(td_world(), TD_SHAPE(n), dtype) : td_zeros(TD_SHAPE(n), dtype);
}

static void put(td_tensor *x, int64_t i, double v)
{
    if (x->dtype == TD_U8 || x->dtype == TD_BOOL)
        ((uint8_t *)td__ptr(x))[i] = x->dtype == TD_BOOL ? v > 0 : (uint8_t)(v + 100);
    else
        td__element_put(x->dtype, (char *)td__ptr(x) + (size_t)i * td_dtype_size(x->dtype), v);
}

static double get(td_tensor *x, int64_t i)
{
    return td__element_get(x->dtype, (char *)td__ptr(x) + (size_t)i * td_dtype_size(x->dtype));
}

static double moved(td_dtype dtype, double v)
{
    return dtype == TD_BOOL ? v > 0 : dtype == TD_U8 ? (uint8_t)(v + 100) : v;
}

static double reduced(td_reduce op, int size, int64_t i, int64_t salt)
{
    double r = value(0, i, salt);
    for (int k = 1; k < size; k++) {
        double v = value(k, i, salt);
        r = op == TD_MIN ? (v < r ? v : r) : op == TD_MAX ? (v > r ? v : r) : r + v;
    }
    return r;
}

static bool same(td_dtype t, double got, double expected)
{
    double tolerance = t == TD_F32 ? 1e-6 : t == TD_F64 ? 1e-14 : 0;
    return fabs(got - expected) <= tolerance * (1 + fabs(expected));
}

static void all_reduces(const setup *s, int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(arith); t++)
        for (size_t k = 0; k < TD_COUNT(sizes); k++)
            for (int op = TD_SUM; op <= TD_MAX; op++) {
                if (op == TD_MEAN && !td__is_float(arith[t]))
                    continue;
                TD_SCOPE();
                int64_t n = sizes[k];
                td_tensor *x = make(s, rank, n, arith[t]);
                for (int64_t i = 0; i < n; i++)
                    put(x, i, value(rank, i, op));
                EXPECT(td_all_reduce(td_world(), x, (td_reduce)op) == 0);
                for (int64_t i = 0; i < n; i++) {
                    double expected = reduced((td_reduce)op, size, i, op) / (op == TD_MEAN ? size : 1);
                    EXPECT(same(arith[t], get(x, i), expected));
                }
                shared->rank[rank].hash = hash_bytes(shared->rank[rank].hash, td__ptr(x), (size_t)n * td_dtype_size(arith[t]));
            }
}

static void reduce_scatters(const setup *s, int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(arith); t++)
        for (size_t k = 0; k < TD_COUNT(sizes) - 1; k++)
            for (int in_place = 0; in_place < 2; in_place++) {
                TD_SCOPE();
                int64_t n = sizes[k];
                td_tensor *in = make(s, rank, n * size, arith[t]);
                td_tensor *out = in_place ? td__scoped_tensor(td__tensor_on(in->storage, TD_SHAPE(n), arith[t], n * rank)) : make(s, rank, n, arith[t]);
                for (int64_t i = 0; i < n * size; i++)
                    put(in, i, value(rank, i, 3));
                EXPECT(td_reduce_scatter(td_world(), out, in, k % 2 ? TD_MAX : TD_SUM) == 0);
                for (int64_t i = 0; i < n; i++)
                    EXPECT(same(arith[t], get(out, i), reduced(k % 2 ? TD_MAX : TD_SUM, size, n * rank + i, 3)));
            }
}

static void all_gathers(const setup *s, int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(every); t++)
        for (size_t k = 0; k < TD_COUNT(sizes) - 1; k++)
            for (int in_place = 0; in_place < 2; in_place++) {
                TD_SCOPE();
                int64_t n = sizes[k];
                td_tensor *out = make(s, rank, n * size, every[t]);
                td_tensor *in = in_place ? td__scoped_tensor(td__tensor_on(out->storage, TD_SHAPE(n), every[t], n * rank)) : make(s, rank, n, every[t]);
                for (int64_t i = 0; i < n; i++)
                    put(in, i, value(rank, i, 4));
                EXPECT(td_all_gather(td_world(), out, in) == 0);
                for (int64_t i = 0; i < n * size; i++)
                    EXPECT(get(out, i) == moved(every[t], value((int)(i / n), i % n, 4)));
                shared->rank[rank].hash = hash_bytes(shared->rank[rank].hash, td__ptr(out), (size_t)(n * size) * td_dtype_size(every[t]));
            }
}

static void broadcasts(const setup *s, int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(every); t++)
        for (size_t k = 0; k < TD_COUNT(sizes); k++)
            for (int root = 0; root < size; root++) {
                TD_SCOPE();
                int64_t n = sizes[k];
                td_tensor *x = make(s, rank, n, every[t]);
                for (int64_t i = 0; i < n; i++)
                    put(x, i, value(rank, i, root));
                EXPECT(td_broadcast(td_world(), x, root) == 0);
                for (int64_t i = 0; i < n; i++)
                    EXPECT(get(x, i) == moved(every[t], value(root, i, root)));
                shared->rank[rank].hash = hash_bytes(shared->rank[rank].hash, td__ptr(x), (size_t)n * td_dtype_size(every[t]));
            }
}

static void filled(td_tensor *x, int rank, int64_t salt)
{
    for (int64_t i = 0; i < td_numel(x); i++)
        put(x, i, value(rank, i, salt));
}

/* [at, at + n) of x is what rank `from` has from from_at on. */
static bool holds(td_tensor *x, int64_t at, int64_t n, int from, int64_t from_at, int64_t salt)
{
    for (int64_t i = 0; i < n; i++)
        if (get(x, at + i) != moved(x->dtype, value(from, from_at + i, salt)))
            return false;
    return true;
}

static td_tensor *part(td_tensor *x, int64_t at, int64_t n)
{
    return td__scoped_tensor(td__tensor_on(x->storage, TD_SHAPE(n), x->dtype, at));
}

/* To a root and from it, in place and not. */
static void rooted(const setup *s, int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(every); t++)
        for (size_t k = 0; k < TD_COUNT(sizes) - 1; k++)
            for (int root = 0; root < size; root++) {
                TD_SCOPE();
                const int64_t n = sizes[k];
                const bool mine = root == rank, in_place = (k + t) % 2 && mine;
                td_comm *w = td_world();
                td_tensor *whole = make(s, rank, n * size, every[t]), *x = in_place ? part(whole, n * rank, n) : make(s, rank, n, every[t]);
                filled(whole, rank, 1);
                filled(x, rank, 2);
                EXPECT(td_gather_to(w, mine ? whole : NULL, x, root) == 0);
                for (int r = 0; r < size; r++)
                    EXPECT(mine ? holds(whole, r * n, n, r, 0, 2) : holds(whole, r * n, n, rank, r * n, 1));
                filled(whole, rank, 3);
                EXPECT(td_scatter_from(w, x, mine ? whole : NULL, root) == 0);
                EXPECT(holds(x, 0, n, root, rank * n, 3));
                if (!td__is_arith(every[t]))
                    continue;
                td_tensor *y = make(s, rank, n, every[t]);
                filled(y, rank, 4);
                EXPECT(td_reduce_to(w, y, k % 2 ? TD_MIN : TD_SUM, root) == 0);
                for (int64_t i = 0; i < n; i++)
                    EXPECT(mine ? same(every[t], get(y, i), reduced(k % 2 ? TD_MIN : TD_SUM, size, i, 4)) : get(y, i) == value(rank, i, 4));
            }
}

/* Everybody to everybody, even, in place, and in parts of 0, 1 and 2 times n; parts of 0, 1, 2 … times n gathered by all. */
static void exchanges(const setup *s, int rank, int size)
{
    for (size_t t = 0; t < TD_COUNT(every); t++)
        for (size_t k = 0; k < TD_COUNT(sizes) - 1; k++) {
            TD_SCOPE();
            td_comm *w = td_world();
            const int64_t n = sizes[k];
            td_tensor *in = make(s, rank, n * size, every[t]), *out = make(s, rank, n * size, every[t]);
            filled(in, rank, 1);
            EXPECT(td_all_to_all(w, out, in) == 0);
            EXPECT(td_all_to_all(w, in, in) == 0);
            for (int r = 0; r < size; r++)
                EXPECT(holds(out, r * n, n, r, rank * n, 1) && holds(in, r * n, n, r, rank * n, 1));
            int64_t rows[MAX_RANKS], to[MAX_RANKS], from[MAX_RANKS], all = 0, sent = 0, come = 0, before = 0, at = 0;
            for (int r = 0; r < size; r++) {
                rows[r] = (r + 1) % 3 * n, all += rows[r], before += r < rank ? rows[r] : 0;
                to[r] = (2 * rank + r) % 3 * n, sent += to[r];
                from[r] = (2 * r + rank) % 3 * n, come += from[r];
            }
            td_tensor *gathered = make(s, rank, all, every[t]), *own = k % 2 ? part(gathered, before, rows[rank]) : make(s, rank, rows[rank], every[t]);
            filled(own, rank, 2);
            EXPECT(td_all_gather_uneven(w, gathered, own, rows) == 0);
            for (int r = 0; r < size; at += rows[r++])
                EXPECT(holds(gathered, at, rows[r], r, 0, 2));
            shared->rank[rank].hash = hash_bytes(shared->rank[rank].hash, td__ptr(gathered), (size_t)all * td_dtype_size(every[t]));
            td_tensor *given = make(s, rank, sent, every[t]), *taken = make(s, rank, come, every[t]);
            filled(given, rank, 3);
            EXPECT(td_all_to_all_uneven(w, taken, from, given, to) == 0);
            at = 0;
            for (int r = 0; r < size; at += from[r++]) {
                int64_t there = 0;
                for (int i = 0; i < rank; i++)
                    there += (2 * r + i) % 3 * n;
                EXPECT(holds(taken, at, from[r], r, there, 3));
            }
        }
}

static int everything(int rank, int size, void *arg)
{
    const setup *s = arg;
    EXPECT(!strcmp(td_comm_backend_name(td_world()), size == 1 ? "self" : "shm"));
    EXPECT(td_rank(td_world()) == rank && td_size(td_world()) == size);
    all_reduces(s, rank, size);
    reduce_scatters(s, rank, size);
    all_gathers(s, rank, size);
    broadcasts(s, rank, size);
    rooted(s, rank, size);
    exchanges(s, rank, size);
    for (int i = 0; i < 100; i++)
        EXPECT(td_barrier(td_world()) == 0);
    return 0;
}

static void with(int size, int memory)
{
    setup s = { memory };
    all_well(size, everything, &s, 60);
    for (int r = 1; r < size; r++)
        assert_true(shared->rank[r].hash == shared->rank[0].hash);
}

static void one_rank(void **state) { (void)state; with(1, 0), with(1, 1); }
static void two_ranks(void **state) { (void)state; with(2, 0), with(2, 1), with(2, 2); }
static void three_ranks(void **state) { (void)state; with(3, 0), with(3, 1); }
static void four_ranks(void **state) { (void)state; with(4, 0), with(4, 2); }

/* Roundings of a sum depend on its order: with numbers of all sizes equal bits show that all ranks took the same. */
static int rough(int rank, int size, void *arg)
{
    const setup *s = arg;
    static const int64_t n[] = { 500, 33333, 200001 };
    for (int k = 0; k < 3; k++) {
        TD_SCOPE();
        td_tensor *x = make(s, rank, n[k], TD_F32);
        float *p = td__ptr(x);
        uint32_t seed = (uint32_t)rank * 7919 + 17;
        for (int64_t i = 0; i < n[k]; i++) {
            seed = seed * 1664525 + 1013904223;
            p[i] = (float)((int32_t)seed) * (seed & 64 ? 1e-9f : 1e-3f);
        }
        td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = TD_F32, .op = TD_SUM, .in = p, .out = p, .count = n[k], .pre = 1.0 / (rank + 3),
                         .post = 1.0 / size };
        EXPECT(td__coll_run(td_world(), &coll) == 0);
        EXPECT(coll.ended >= coll.begun && coll.begun >= coll.arrived && coll.last_arrived >= coll.arrived);
        EXPECT(coll.last_rank >= 0 && coll.last_rank < size);
        shared->rank[rank].hash = hash_bytes(shared->rank[rank].hash, p, (size_t)n[k] * 4);
    }
    return 0;
}

static void same_bits(void **state)
{
    (void)state;
    for (int memory = 0; memory < 3; memory++) {
        setup s = { memory };
        int size = memory == 0 ? 8 : 3;
        all_well(size, rough, &s, 30);
        for (int r = 1; r < size; r++)
            assert_true(shared->rank[r].hash == shared->rank[0].hash);
    }
}

/* Each rank's factor before the sum, one after it; a part with factor 0 is not looked at. */
static int factors(int rank, int size, void *arg)
{
    const setup *s = arg;
    static const int64_t n[] = { 3, 1000, 100003 };
    for (int k = 0; k < 3; k++) {
        TD_SCOPE();
        td_tensor *x = make(s, rank, n[k], TD_F64);
        double *p = td__ptr(x);
        for (int64_t i = 0; i < n[k]; i++)
            p[i] = rank == 1 ? NAN : (double)i + rank;
        td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = TD_F64, .op = TD_SUM, .in = p, .out = p, .count = n[k],
                         .pre = rank == 1 ? 0 : rank + 0.5, .post = 0.25 };
        EXPECT(td__coll_run(td_world(), &coll) == 0);
        for (int64_t i = 0; i < n[k]; i++) {
            double expected = 0;
            for (int r = 0; r < size; r++)
                expected += r == 1 ? 0 : (r + 0.5) * ((double)i + r);
            EXPECT(same(TD_F64, p[i], expected * 0.25));
        }
    }
    return 0;
}

static void weights(void **state)
{
    (void)state;
    for (int memory = 0; memory < 2; memory++)
        for (int size = 1; size <= 4; size += 1) {
            setup s = { memory };
            if (size > 1)
                all_well(size, factors, &s, 30);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank), cmocka_unit_test(two_ranks), cmocka_unit_test(three_ranks), cmocka_unit_test(four_ranks),
        cmocka_unit_test(same_bits), cmocka_unit_test(weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
