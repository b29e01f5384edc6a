/* tests/comm/against_mpi_case.c: which collective a case is, its memory and its data. */
#include "against_mpi.h"

static const td_dtype dtypes[] = { TD_F64, TD_F32, TD_F16, TD_BF16, TD_I64, TD_I32, TD_U8, TD_BOOL };

uint64_t next(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int64_t below(uint64_t *s, int64_t n)
{
    return (int64_t)(next(s) % (uint64_t)n);
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

void choose(job *j, uint64_t *s)
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
void prepare(job *j, uint64_t seed)
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
