/* tests/comm/against_mpi_check.c: a case's results beside those of MPI. */
#include "against_mpi.h"

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

static bool reduces(int kind) { return kind == ALL_REDUCE || kind == REDUCE || kind == REDUCE_SCATTER; }

void check(job *j)
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
