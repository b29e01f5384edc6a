/* Every collective of the public interface beside the plain function of MPI, on the same random data: run by mpirun, in a program that owns its MPI.
 *
 *     against_mpi BACKEND SEED CASES [GROUPS]     GROUPS: how many times a random group is made and does CASES
 *
 * A case is a kind, a dtype, a reduction, counts, a root, in place or apart, tensors (in the arena or not) or plain memory, blocking or started;
 * up to eight of them are under way at a time and are waited for in any order. Copies, integers, minima and maxima must be equal; sums and products of
 * floats as near as their roundings allow; f16 and bf16 the f64 result rounded once, give or take f32's roundings before that. What is not a result must
 * be as it was, and what all ranks get must have the same bits on all. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <tandem.h>
#include <tandem/mpi.h>

enum { BROADCAST, ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, GATHER, SCATTER, ALL_TO_ALL, ALL_GATHER_UNEVEN, ALL_TO_ALL_UNEVEN, BARRIER, KINDS };
enum { FLIGHT = 8, RANKS = 8, GUARD = 16 };
static const char *const names[] = { "broadcast", "all_reduce", "reduce", "reduce_scatter", "all_gather", "gather", "scatter", "all_to_all",
                                     "all_gather_uneven", "all_to_all_uneven", "barrier" };
static const td_dtype dtypes[] = { TD_F64, TD_F32, TD_F16, TD_BF16, TD_I64, TD_I32, TD_U8, TD_BOOL };
static int rank, size;
static td_comm *tested;                        /* the world or a group …                                                      */
static MPI_Comm plain;                         /* … and MPI's of the same ranks                                              */

typedef struct {
    int kind, root, number;
    td_dtype t;
    td_reduce op;
    int64_t count;                             /* of a part; rows times width                                                 */
    bool in_place, raw, started, arena;
    int64_t width, counts[RANKS], in_counts[RANKS];    /* uneven, elements: that this rank receives, sends                     */
    int64_t in_n, out_n, out_at, in_at;        /* elements of in and out; in place: where they lie in the one buffer           */
    char *in, *out, *in_before, *out_before;
    td_tensor *in_x, *out_x;
    td_work *work;
} job;

static void fail_with(const job *j, const char *what, int64_t i)
{
    fprintf(stderr, "rank %d of %d, case %d: %s(%s, op %d, count %lld, root %d%s%s%s%s): %s at %lld (%s)\n", rank, size, j->number, names[j->kind],
            td_dtype_name(j->t), (int)j->op, (long long)j->count, j->root, j->in_place ? ", in place" : "", j->raw ? ", raw" : "",
            j->started ? ", started" : "", j->arena ? ", arena" : "", what, (long long)i, td_error_message());
    MPI_Abort(MPI_COMM_WORLD, 99);
    _exit(99);
}

/* ---- random numbers: those of a case are the same on all ranks, those of its data are not ------------------------------------------------ */
static uint64_t next(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int64_t below(uint64_t *s, int64_t n)
{
    return (int64_t)(next(s) % (uint64_t)n);
}

static float f16_value(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 1023;
    float v = e ? ldexpf((float)(1024 + m), e - 25) : ldexpf((float)m, -24);
    return h & 0x8000 ? -v : v;
}

/* finite values alone */
static double at(td_dtype t, const char *p, int64_t i)
{
    uint32_t u;
    float f;
    switch (t) {
    case TD_F64: return ((const double *)p)[i];
    case TD_F32: return (double)((const float *)p)[i];
    case TD_F16: return (double)f16_value(((const uint16_t *)p)[i]);
    case TD_BF16:
        u = (uint32_t)((const uint16_t *)p)[i] << 16;
        memcpy(&f, &u, 4);
        return (double)f;
    default: return 0;
    }
}

static void fill(td_dtype t, char *p, int64_t n, uint64_t s)
{
    for (int64_t i = 0; i < n; i++) {
        uint64_t u = next(&s);
        float f = (float)((double)(u >> 11) * 0x1p-52 - 1) * (u & 32 ? 1.5f : 0.125f);
        uint32_t bits;
        memcpy(&bits, &f, 4);
        switch (t) {
        case TD_F64: ((double *)p)[i] = (double)(u >> 11) * 0x1p-52 - 1; break;
        case TD_F32: ((float *)p)[i] = f; break;
        case TD_F16: ((uint16_t *)p)[i] = (uint16_t)((u >> 32 & 0x83ff) | (uint64_t)(10 + (u >> 20) % 7) << 10); break;
        case TD_BF16: ((uint16_t *)p)[i] = (uint16_t)(bits >> 16); break;
        case TD_I64: ((uint64_t *)p)[i] = u; break;
        case TD_I32: ((uint32_t *)p)[i] = (uint32_t)u; break;
        case TD_BOOL: ((uint8_t *)p)[i] = u % 5 < 2; break;
        default: ((uint8_t *)p)[i] = (uint8_t)u; break;
        }
    }
}

/* ---- a case ------------------------------------------------------------------------------------------------------------------------------ */
static bool reduces(int kind) { return kind == ALL_REDUCE || kind == REDUCE || kind == REDUCE_SCATTER; }
static int64_t sum(const int64_t *n, int k) { int64_t all = 0; for (int i = 0; i < k; i++) all += n[i]; return all; }

static int64_t random_count(uint64_t *s)
{
    switch (below(s, 6)) {
    case 0: return below(s, 3);
    case 1: return below(s, 100);
    case 2: return below(s, 1500);
    case 3: return below(s, 20000);
    default: return below(s, 100000);
    }
}

static void choose(job *j, uint64_t *s)
{
    int64_t pair[RANKS][RANKS];
    j->kind = (int)below(s, KINDS);
    j->t = dtypes[below(s, 8)];
    j->op = (td_reduce)below(s, 5);
    if (j->t == TD_BOOL && j->op != TD_MIN)
        j->op = TD_MAX;
    if (j->op == TD_MEAN && (j->t == TD_I64 || j->t == TD_I32 || j->t == TD_U8))
        j->op = TD_SUM;
    j->root = (int)below(s, size);
    j->count = random_count(s);
    if (j->kind >= REDUCE_SCATTER)
        j->count /= size;
    j->in_place = below(s, 2), j->started = below(s, 3) > 0;
    uint64_t own = *s + (uint64_t)rank * 77;
    j->raw = next(&own) & 1, j->arena = next(&own) % 3 > 0;            /* ranks may differ in these                                 */
    if (j->kind == BROADCAST || j->kind == BARRIER)
        j->in_place = true;
    j->width = below(s, 2) ? 3 : 1;
    j->count = j->count / j->width * j->width;
    for (int a = 0; a < size; a++)
        for (int b = 0; b < size; b++)
            pair[a][b] = below(s, 4) ? below(s, j->count / j->width + 2) * j->width : 0;
    for (int r = 0; r < size; r++) {
        j->counts[r] = j->kind == ALL_GATHER_UNEVEN ? pair[0][r] : pair[r][rank];
        j->in_counts[r] = pair[rank][r];
    }
    if (j->kind == ALL_TO_ALL_UNEVEN && j->in_place)
        for (int r = 0; r < size; r++)
            j->counts[r] = j->in_counts[r] = pair[r < rank ? r : rank][r < rank ? rank : r];
    const int64_t n = j->count;
    const bool at_root = rank == j->root;
    j->in_n = j->out_n = n, j->in_at = j->out_at = 0;
    switch (j->kind) {
    case REDUCE: j->out_n = at_root ? n : 0; break;
    case REDUCE_SCATTER: j->in_n = n * size, j->out_at = j->raw && next(&own) & 1 ? 0 : n * rank; break;
    case ALL_GATHER: j->out_n = n * size, j->in_at = n * rank; break;
    case GATHER: j->out_n = at_root ? n * size : 0, j->in_at = n * rank; break;
    case SCATTER: j->in_n = at_root ? n * size : 0, j->out_at = n * rank; break;
    case ALL_TO_ALL: j->in_n = j->out_n = n * size; break;
    case ALL_GATHER_UNEVEN: j->in_n = j->counts[rank], j->out_n = sum(j->counts, size), j->in_at = sum(j->counts, rank); break;
    case ALL_TO_ALL_UNEVEN: j->in_n = sum(j->in_counts, size), j->out_n = sum(j->counts, size); break;
    case BARRIER: j->in_n = j->out_n = 0; break;
    default: break;
    }
    if ((j->kind == REDUCE || j->kind == GATHER || j->kind == SCATTER) && !at_root)
        j->in_place = j->kind == REDUCE && !j->raw;                    /* a tensor is one there                                       */
    if (j->kind == ALL_REDUCE || j->kind == REDUCE)
        j->in_place |= !j->raw;
    if (!j->in_place)
        j->in_at = j->out_at = 0;
}

static td_tensor *memory(const job *j, int64_t n)
{
    const td_shape shape = j->width > 1 && n % j->width == 0 ? TD_SHAPE(n / j->width, j->width) : TD_SHAPE(n);
    return j->arena ? td_zeros_shared(tested, shape, j->t) : td_zeros(shape, j->t);
}

static td_tensor *rows(const job *j, td_tensor *x, int64_t from, int64_t n)
{
    const int64_t row = td_shape_of(x).ndim == 2 ? j->width : 1;
    return td_narrow(x, 0, from / row, n / row);
}

static char *copy_of(const job *j, const char *p, int64_t n)
{
    const size_t bytes = (size_t)n * td_dtype_size(j->t);
    char *copy = malloc(bytes + 1);
    return memcpy(copy, p, bytes);
}

/* Guards lie on both sides of what the collective knows of. */
static void prepare(job *j, uint64_t seed)
{
    const size_t e = td_dtype_size(j->t);
    const int64_t in_all = j->in_place ? (j->in_n > j->out_n ? j->in_n : j->out_n) : j->in_n, guard = GUARD * j->width;
    td_tensor *a = memory(j, in_all + 2 * guard), *b = j->in_place ? a : memory(j, j->out_n + 2 * guard);
    fill(j->t, td_data(a), in_all + 2 * guard, seed);
    if (a != b)
        fill(j->t, td_data(b), j->out_n + 2 * guard, seed + 1);
    j->in = (char *)td_data(a) + (size_t)(guard + j->in_at) * e;
    j->out = (char *)td_data(b) + (size_t)(guard + j->out_at) * e;
    j->in_x = j->raw ? a : rows(j, a, guard + j->in_at, j->in_n);
    j->out_x = j->raw ? b : j->in_place && j->in_at == j->out_at && j->in_n == j->out_n ? j->in_x : rows(j, b, guard + j->out_at, j->out_n);
    j->in_before = copy_of(j, j->in - (size_t)(j->in_at + guard) * e, in_all + 2 * guard);
    j->out_before = copy_of(j, j->out - (size_t)(j->out_at + guard) * e, (a == b ? in_all : j->out_n) + 2 * guard);
}

/* ---- Tandem -------------------------------------------------------------------------------------------------------------------------------- */
static int run_raw(job *j)
{
    td_comm *w = tested;
    const bool st = j->started, at_root = rank == j->root;
    const void *in = j->in_n ? j->in : NULL;
    void *out = j->out_n ? j->out : NULL;
#define EITHER(name, ...) (st ? (j->work = td_raw_##name##_start(w, __VA_ARGS__), 0) : td_raw_##name(w, __VA_ARGS__))
    switch (j->kind) {
    case BROADCAST: return EITHER(broadcast, out, j->count, j->t, j->root);
    case ALL_REDUCE: return EITHER(all_reduce, in, out, j->count, j->t, j->op);
    case REDUCE: return EITHER(reduce, in, out, j->count, j->t, j->op, j->root);
    case REDUCE_SCATTER: return EITHER(reduce_scatter, in, out, j->count, j->t, j->op);
    case ALL_GATHER: return EITHER(all_gather, in, out, j->count, j->t);
    case GATHER: return EITHER(gather, in, at_root ? out : NULL, j->count, j->t, j->root);
    case SCATTER: return EITHER(scatter, at_root ? in : NULL, out, j->count, j->t, j->root);
    case ALL_TO_ALL: return EITHER(all_to_all, in, out, j->count, j->t);
    case ALL_GATHER_UNEVEN: return EITHER(all_gather_uneven, in, out, j->counts, j->t);
    default: return EITHER(all_to_all_uneven, in, j->in_counts, out, j->counts, j->t);
    }
#undef EITHER
}

static int run_tensors(job *j)
{
    td_comm *w = tested;
    const bool st = j->started, at_root = rank == j->root;
    td_tensor *in = j->in_x, *out = j->out_x;
    int64_t out_rows[RANKS], in_rows[RANKS];
    for (int r = 0; r < size; r++)
        out_rows[r] = j->counts[r] / j->width, in_rows[r] = j->in_counts[r] / j->width;
#define EITHER(name, ...) (st ? (j->work = td_##name##_start(w, __VA_ARGS__), 0) : td_##name(w, __VA_ARGS__))
    switch (j->kind) {
    case BROADCAST: return EITHER(broadcast, out, j->root);
    case ALL_REDUCE: return EITHER(all_reduce, in, j->op);
    case REDUCE: return EITHER(reduce_to, in, j->op, j->root);
    case REDUCE_SCATTER: return EITHER(reduce_scatter, out, in, j->op);
    case ALL_GATHER: return EITHER(all_gather, out, in);
    case GATHER: return EITHER(gather_to, at_root ? out : NULL, in, j->root);
    case SCATTER: return EITHER(scatter_from, out, at_root ? in : NULL, j->root);
    case ALL_TO_ALL: return EITHER(all_to_all, out, in);
    case ALL_GATHER_UNEVEN: return EITHER(all_gather_uneven, out, in, out_rows);
    default: return EITHER(all_to_all_uneven, out, out_rows, in, in_rows);
    }
#undef EITHER
}

static void run(job *j)
{
    j->work = NULL;
    int code = j->kind == BARRIER ? (j->started ? (j->work = td_barrier_start(tested), 0) : td_barrier(tested))
               : j->raw ? run_raw(j) : run_tensors(j);
    if (code)
        fail_with(j, "an error", code);
}

/* ---- MPI ------------------------------------------------------------------------------------------------------------------------------------- */
static MPI_Datatype mpi_type(td_dtype t)
{
    return t == TD_F64 ? MPI_DOUBLE : t == TD_F32 ? MPI_FLOAT : t == TD_I64 ? MPI_INT64_T : t == TD_I32 ? MPI_INT32_T : t == TD_BOOL ? MPI_C_BOOL : MPI_UINT8_T;
}

static MPI_Op mpi_op(const job *j)
{
    if (j->t == TD_BOOL)
        return j->op == TD_MIN ? MPI_LAND : MPI_LOR;
    return j->op == TD_MIN ? MPI_MIN : j->op == TD_MAX ? MPI_MAX : j->op == TD_PRODUCT ? MPI_PROD : MPI_SUM;
}

static float to_f16(double x)                  /* and back, by nearest even; |x| is in range                                          */
{
    int e;
    frexp(x, &e);
    double unit = ldexp(1, (e < -13 ? -13 : e) - 11);
    double v = rint(x / unit) * unit;
    return (float)(fabs(v) > 65504 ? copysign(INFINITY, v) : v);
}

static double to_half(td_dtype t, double x)
{
    if (t == TD_F16)
        return (double)to_f16(x);
    int e;
    frexp(x, &e);
    double unit = ldexp(1, (e < -125 ? -125 : e) - 8);
    return rint(x / unit) * unit;
}

/* In f64 by MPI, and the sum of magnitudes for the size of the roundings. */
static void check_reduction(job *j, const char *in)
{
    const int64_t total = j->kind == REDUCE_SCATTER ? j->count * size : j->count, first = j->kind == REDUCE_SCATTER ? j->count * rank : 0;
    const bool real = j->t == TD_F64 || j->t == TD_F32 || j->t == TD_F16 || j->t == TD_BF16;
    if (!real) {
        char *want = malloc((size_t)total * 8 + 1);
        const size_t e = td_dtype_size(j->t);
        uint32_t *wide = malloc((size_t)total * 4 + 4);
        for (int64_t i = 0; i < total && j->t == TD_U8; i++)       /* Open MPI's sum of u8 sometimes stops at 255                  */
            wide[i] = (uint8_t)in[i];
        if (j->t == TD_U8)
            MPI_Allreduce(MPI_IN_PLACE, wide, (int)total, MPI_UINT32_T, mpi_op(j), plain);
        else
            MPI_Allreduce(in, want, (int)total, mpi_type(j->t), mpi_op(j), plain);
        for (int64_t i = 0; i < total && j->t == TD_U8; i++)
            want[i] = (char)(uint8_t)wide[i];
        free(wide);
        for (int64_t i = 0; i < j->out_n; i++)
            if (memcmp(want + (size_t)(first + i) * e, j->out + (size_t)i * e, e))
                fail_with(j, "another value", i);
        free(want);
        return;
    }
    double *mine = malloc((size_t)total * 8 + 8), *want = malloc((size_t)total * 8 + 8), *large = malloc((size_t)total * 8 + 8);
    for (int64_t i = 0; i < total; i++)
        mine[i] = at(j->t, in, i);
    MPI_Allreduce(mine, want, (int)total, MPI_DOUBLE, mpi_op(j), plain);
    for (int64_t i = 0; i < total; i++)
        mine[i] = fabs(mine[i]);
    MPI_Allreduce(mine, large, (int)total, MPI_DOUBLE, j->op == TD_PRODUCT ? MPI_PROD : MPI_SUM, plain);
    const double unit = j->t == TD_F64 ? 0x1p-52 : 0x1p-23, by = j->op == TD_MEAN ? 1.0 / size : 1;
    for (int64_t i = 0; i < j->out_n; i++) {
        const double exact = want[first + i] * by, room = j->op == TD_MIN || j->op == TD_MAX ? 0 : (size + 1) * unit * large[first + i] * by + 0x1p-149,
                     got = at(j->t, j->out, i);
        const bool half = j->t == TD_F16 || j->t == TD_BF16;
        const double low = half ? to_half(j->t, exact - room) : exact - room, high = half ? to_half(j->t, exact + room) : exact + room;
        if (!(got >= low && got <= high)) {
            fprintf(stderr, "%.17g is not from %.17g to %.17g\n", got, low, high);
            fail_with(j, "another value", i);
        }
    }
    free(mine);
    free(want);
    free(large);
}

static void check_copy(job *j, const char *in, const char *before)
{
    const int bytes = (int)td_dtype_size(j->t), n = (int)j->count * bytes;
    const MPI_Comm w = plain;
    char *want = malloc((size_t)j->out_n * (size_t)bytes + (size_t)n + 1);
    int out[RANKS], out_at[RANKS], ins[RANKS], ins_at[RANKS], a = 0, b = 0;
    for (int r = 0; r < size; r++) {
        out[r] = (int)j->counts[r] * bytes, out_at[r] = a, a += out[r];
        ins[r] = (int)j->in_counts[r] * bytes, ins_at[r] = b, b += ins[r];
    }
    memcpy(want, before, (size_t)j->out_n * (size_t)bytes);
    switch (j->kind) {
    case BROADCAST: MPI_Bcast(memcpy(want, in, (size_t)n), n, MPI_BYTE, j->root, w); break;
    case ALL_GATHER: MPI_Allgather(in, n, MPI_BYTE, want, n, MPI_BYTE, w); break;
    case GATHER: MPI_Gather(in, n, MPI_BYTE, want, n, MPI_BYTE, j->root, w); break;
    case SCATTER: MPI_Scatter(in, n, MPI_BYTE, want, n, MPI_BYTE, j->root, w); break;
    case ALL_TO_ALL: MPI_Alltoall(in, n, MPI_BYTE, want, n, MPI_BYTE, w); break;
    case ALL_GATHER_UNEVEN: MPI_Allgatherv(in, out[rank], MPI_BYTE, want, out, out_at, MPI_BYTE, w); break;
    default: MPI_Alltoallv(in, ins, ins_at, MPI_BYTE, want, out, out_at, MPI_BYTE, w); break;
    }
    if (memcmp(want, j->out, (size_t)j->out_n * (size_t)bytes))
        fail_with(j, "other bytes", 0);
    free(want);
}

/* Where two buffers of `all` elements differ although [from, from + n) alone may: -1 nowhere. */
static int64_t touched(const job *j, const char *now, const char *before, int64_t all, int64_t from, int64_t n)
{
    const size_t e = td_dtype_size(j->t);
    for (int64_t i = 0; i < all; i++)
        if ((i < from || i >= from + n) && memcmp(now + (size_t)i * e, before + (size_t)i * e, e))
            return i;
    return -1;
}

static void check(job *j)
{
    if (j->kind == BARRIER)
        return;
    const size_t e = td_dtype_size(j->t);
    const int64_t guard = GUARD * j->width, in_all = (j->in_place ? (j->in_n > j->out_n ? j->in_n : j->out_n) : j->in_n) + 2 * guard;
    const bool at_root = rank == j->root;
    const int64_t written = (j->kind == REDUCE || j->kind == GATHER) && !at_root ? 0 : j->out_n;
    const char *in = j->in_before + (size_t)(guard + j->in_at) * e, *before = j->out_before + (size_t)(guard + j->out_at) * e;
    int64_t odd = touched(j, j->in - (size_t)(j->in_at + guard) * e, j->in_before, in_all, guard + j->out_at, j->in_place ? written : 0);
    if (odd < 0 && !j->in_place)
        odd = touched(j, j->out - (size_t)guard * e, j->out_before, j->out_n + 2 * guard, guard, written);
    if (odd >= 0)
        fail_with(j, "memory was touched that is no result", odd);
    if (reduces(j->kind))
        check_reduction(j, in);
    else
        check_copy(j, in, before);
    if (j->kind != ALL_REDUCE)
        return;
    uint64_t hash = 14695981039346656037u, low, high;
    for (size_t i = 0; i < (size_t)j->out_n * e; i++)
        hash = (hash ^ (uint8_t)j->out[i]) * 1099511628211u;
    MPI_Allreduce(&hash, &low, 1, MPI_UINT64_T, MPI_MIN, plain);
    MPI_Allreduce(&hash, &high, 1, MPI_UINT64_T, MPI_MAX, plain);
    if (low != high)
        fail_with(j, "other bits on other ranks", 0);
}

static void run_cases(uint64_t s, int cases)
{
    static job jobs[FLIGHT];
    for (int done = 0; done < cases;) {
        TD_SCOPE();
        const int n = 1 + (int)below(&s, FLIGHT);
        for (int i = 0; i < n; i++) {
            jobs[i] = (job){ .number = done + i };
            choose(&jobs[i], &s);
            prepare(&jobs[i], s + (uint64_t)rank * 1000003 + (uint64_t)i * 7);
            run(&jobs[i]);
        }
        for (int i = 0, k = (int)below(&s, n); i < n; i++, k = (k + 1) % n)
            if (jobs[k].work && td_wait(jobs[k].work))
                fail_with(&jobs[k], "an error of td_wait", 0);
        for (int i = 0; i < n; i++) {
            check(&jobs[i]);
            free(jobs[i].in_before);
            free(jobs[i].out_before);
        }
        done += n;
    }
}

/* The same split of both, of the world or of a group of it, on random colors and keys; then cases in each group, all groups at once. */
static void run_groups(uint64_t *s, int groups, int cases)
{
    const job none = { .number = -1 };
    for (int g = 0; g < groups; g++) {
        td_comm *made[3] = { td_world() };
        MPI_Comm same[3] = { MPI_COMM_WORLD };
        int depth = 0, theirs[2], ranks[RANKS], all[RANKS], me;
        uint64_t of_group = 0;
        MPI_Comm_rank(MPI_COMM_WORLD, &me);
        for (int d = 1; d < 3; d++) {
            int color[RANKS], key[RANKS];
            for (int r = 0; r < RANKS; r++)
                color[r] = (int)below(s, 3) - (below(s, 4) == 0), key[r] = (int)below(s, 5) - 2;
            const bool copy = below(s, 4) == 0;
            if (depth < d - 1)
                continue;
            const int r = td_rank(made[depth]);
            made[d] = copy ? td_comm_dup(made[depth]) : td_comm_split(made[depth], color[r] < 0 ? TD_NO_COLOR : color[r], key[r]);
            if (copy)
                MPI_Comm_dup(same[depth], &same[d]);
            else
                MPI_Comm_split(same[depth], color[r] < 0 ? MPI_UNDEFINED : color[r], key[r], &same[d]);
            if (td_error_message()[0] || (made[d] == NULL) != (same[d] == MPI_COMM_NULL))
                fail_with(&none, "a split", d);
            of_group = of_group * 4 + (uint64_t)(copy ? 3 : color[r] + 1);
            if (!made[d])
                continue;
            depth = d;
            tested = made[d], plain = same[d];
            MPI_Comm_rank(plain, &theirs[0]);
            MPI_Comm_size(plain, &theirs[1]);
            rank = td_rank(tested), size = td_size(tested);
            MPI_Allgather(&me, 1, MPI_INT, all, 1, MPI_INT, plain);
            if (rank != theirs[0] || size != theirs[1] || td_comm_ranks(tested, ranks) != size || memcmp(ranks, all, (size_t)size * sizeof *all))
                fail_with(&none, "who is in the group", rank);
        }
        if (depth == 2)                        /* the others of the same parent are in a group of it                          */
            run_cases(*s + of_group, cases);
        for (int d = depth; d > 0; d--) {
            MPI_Comm_free(&same[d]);
            if (g % 2 && td_comm_free(made[d]))
                fail_with(&none, "td_comm_free", d);
        }
    }
    tested = td_world(), plain = MPI_COMM_WORLD;
    rank = td_rank(tested), size = td_size(tested);
}

int main(int argc, char **argv)
{
    int provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    const job none = { .number = -1 };
    uint64_t s = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const int cases = argc > 3 ? atoi(argv[3]) : 300, groups = argc > 4 ? atoi(argv[4]) : 0;
    if (size > RANKS || td_init_mpi(MPI_COMM_WORLD) || strcmp(td_comm_backend_name(td_world()), argc > 1 ? argv[1] : ""))
        fail_with(&none, td_comm_backend_name(td_world()), size);
    tested = td_world(), plain = MPI_COMM_WORLD;
    if (groups)
        run_groups(&s, groups, cases);
    else
        run_cases(s, cases);
    if (rank == 0)
        printf("%s: %d cases on %d ranks%s\n", argv[1], cases, size, groups ? ", in groups" : "");
    int code = td_finish();
    MPI_Finalize();
    return code;
}
