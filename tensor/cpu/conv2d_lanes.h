/* tensor/cpu/conv2d_lanes.h: what convolutions whose lanes are channels share (conv2d_winograd.c, conv2d_blocks.c): pixels turned from planes to vectors and
 * back, and the two matrix products between vectors.
 *
 * Operands lie as [block of LANES channels][tile or pixel][LANES]. A product reads broadcast values of one operand and vectors of the other from neighbouring
 * places; nothing is summed across lanes, however few the pixels are. Each result is one chain of sums over the channels, in order: it does not depend on
 * which tiles are taken together.
 */
/* Register tiles: NT*NB accumulators of a product over channels, NA*NB of one over tiles, NB vectors and a broadcast value beside them. */
#if defined(__AVX512F__)
enum { CONV_BYTES = 64, NT = 14, NA = 8, NB = 2 };
#elif defined(__AVX2__)
enum { CONV_BYTES = 32, NT = 6, NA = 4, NB = 2 };
#else
enum { CONV_BYTES = 16, NT = 5, NA = 4, NB = 2 };
#endif
enum { LANES = CONV_BYTES / 4, STRIP = NB * LANES };
typedef float vec __attribute__((vector_size(CONV_BYTES)));
typedef float vec_at __attribute__((vector_size(CONV_BYTES), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(CONV_BYTES)));
#define ALWAYS static inline __attribute__((always_inline)) void

static inline int64_t up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* LANES rows of LANES become columns: log2(LANES) times rows i and i + LANES/2 are zipped to rows 2i and 2i + 1. */
ALWAYS turn(vec *v)
{
#if defined(__AVX512F__)
    const places low = { 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23 },
                 high = { 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31 };
#elif defined(__AVX2__)
    const places low = { 0, 8, 1, 9, 2, 10, 3, 11 }, high = { 4, 12, 5, 13, 6, 14, 7, 15 };
#else
    const places low = { 0, 4, 1, 5 }, high = { 2, 6, 3, 7 };
#endif
#pragma GCC unroll 4
    for (int width = 1; width < LANES; width *= 2) {
        vec t[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; i++) {
            t[2 * i] = __builtin_shuffle(v[i], v[i + LANES / 2], low);
            t[2 * i + 1] = __builtin_shuffle(v[i], v[i + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            v[i] = t[i];
    }
}

/* LANES elements of `rows` rows that lie `apart`, from `at` on, turned: v[j] holds element at + j of each row. Missing rows and elements from
 * `end` on are zero. */
ALWAYS load_turned(vec *v, const float *from, int64_t apart, int64_t rows, int64_t at, int64_t end)
{
    for (int i = 0; i < LANES; i++) {
        v[i] = (vec){ 0 };
        if (i < rows && at + LANES <= end)
            v[i] = *(const vec_at *)(from + i * apart + at);
        else if (i < rows)
            memcpy(&v[i], from + i * apart + at, sizeof(float) * (size_t)(end - at));
    }
    turn(v);
}

/* The reverse: v[j] becomes element at + j of each of `rows` rows, plus the row's start (NULL: none), plus what is there (add). */
ALWAYS store_turned(float *to, int64_t apart, int64_t rows, int64_t at, int64_t end, vec *v, const float *start, bool add)
{
    turn(v);
    for (int i = 0; i < LANES && i < rows; i++) {
        float *row = to + i * apart + at;
        const vec sum = start ? v[i] + start[i] : v[i];
        if (at + LANES <= end) {
            *(vec_at *)row = add ? (vec)*(const vec_at *)row + sum : sum;
            continue;
        }
        for (int j = 0; j < end - at; j++)
            row[j] = add ? row[j] + sum[j] : sum[j];
    }
}

/* `count` rows of `width` pixels from row `first` on of up to LANES channels (each h*width, one after the other) into a frame of vectors whose rows have
 * frame_cols pixels; rows outside the image are zeroed. The frame's columns left and right of the pixels stay as they are. */
static __attribute__((noinline)) void place(float *frame, int64_t frame_cols, int64_t left, const float *x, int64_t channels, int64_t h, int64_t width,
                                            int64_t first, int64_t count)
{
    const int64_t begin = larger(first, 0), end = smaller(first + count, h);
    for (int64_t r = first; r < first + count; r++)
        if (r < begin || r >= end)
            memset(frame + ((r - first) * frame_cols + left) * LANES, 0, sizeof(float) * (size_t)(width * LANES));
    const int64_t pixels = end > begin ? (end - begin) * width : 0;
    float *to = frame + ((begin - first) * frame_cols + left) * LANES;
    for (int64_t q = 0, col = 0; q < pixels; q += LANES) {
        vec v[LANES];
        load_turned(v, x + begin * width, h * width, channels, q, pixels);
        for (int64_t j = 0; j < LANES && q + j < pixels; j++) {
            *(vec_at *)to = v[j];
            to += LANES;
            if (++col == width)
                col = 0, to += (frame_cols - width) * LANES;
        }
    }
}

/* M[t][…] = sum over the channels of V[channel][t] * U[channel][…] for nt tiles and a strip of channels, or that sum carried on (add): the bits do not
 * tell into how many parts it was cut. nt is a constant after inlining. */
static inline __attribute__((always_inline)) void product(const int nt, float *to, int64_t to_block, const float *u, const float *v, int64_t v_block,
                                                          int64_t blocks, bool add)
{
    vec acc[NT][NB];
#pragma GCC unroll 16
    for (int t = 0; t < nt; t++)
#pragma GCC unroll 16
        for (int b = 0; b < NB; b++)
            acc[t][b] = add ? (vec)*(const vec_at *)(to + b * to_block + t * LANES) : (vec){ 0 };
    for (int64_t block = 0; block < blocks; block++, v += v_block)
        for (int lane = 0; lane < LANES; lane++, u += STRIP) {
            vec weight[NB];
#pragma GCC unroll 16
            for (int b = 0; b < NB; b++)
                weight[b] = *(const vec_at *)(u + b * LANES);
#pragma GCC unroll 16
            for (int t = 0; t < nt; t++)
#pragma GCC unroll 16
                for (int b = 0; b < NB; b++)
                    acc[t][b] += weight[b] * v[t * LANES + lane];
        }
#pragma GCC unroll 16
    for (int t = 0; t < nt; t++)
#pragma GCC unroll 16
        for (int b = 0; b < NB; b++)
            *(vec_at *)(to + b * to_block + t * LANES) = acc[t][b];
}

/* One point and strip: tiles in groups of at most NT, evenly cut */
static __attribute__((noinline)) void products(float *to, const float *u, const float *v, int64_t tiles, int64_t blocks, bool add)
{
    const int64_t step = tiles * LANES, groups = up(tiles, NT);
    for (int64_t i = 0, at = 0, next; i < groups; i++, at = next) {
        next = tiles * (i + 1) / groups;
        switch (next - at) {
#define GROUP(n) case n: product(n, to + at * LANES, step, u, v + at * LANES, step, blocks, add); break;
        GROUP(1) GROUP(2) GROUP(3) GROUP(4) GROUP(5)
#if defined(__AVX2__)
        GROUP(6)
#endif
#if defined(__AVX512F__)
        GROUP(7) GROUP(8) GROUP(9) GROUP(10) GROUP(11) GROUP(12) GROUP(13) GROUP(14)
#endif
#undef GROUP
        }
    }
}

/* W[channel][…] = or += sum over the tiles of V[t][channel] * g[t][…] for the channels of a block and a strip of output channels */
static __attribute__((noinline)) void summed(float *w, const float *v, const float *g, int64_t g_block, int64_t tiles,
                                             bool add)
{
    for (int a0 = 0; a0 < LANES; a0 += NA) {
        vec acc[NA][NB];
#pragma GCC unroll 16
        for (int a = 0; a < NA; a++)
#pragma GCC unroll 16
            for (int b = 0; b < NB; b++)
                acc[a][b] = (vec){ 0 };
        for (int64_t t = 0; t < tiles; t++) {
            vec part[NB];
#pragma GCC unroll 16
            for (int b = 0; b < NB; b++)
                part[b] = *(const vec_at *)(g + b * g_block + t * LANES);
#pragma GCC unroll 16
            for (int a = 0; a < NA; a++)
#pragma GCC unroll 16
                for (int b = 0; b < NB; b++)
                    acc[a][b] += part[b] * v[t * LANES + a0 + a];
        }
#pragma GCC unroll 16
        for (int a = 0; a < NA; a++)
#pragma GCC unroll 16
            for (int b = 0; b < NB; b++) {
                vec_at *at = (vec_at *)(w + (a0 + a) * STRIP + b * LANES);
                *at = add ? (vec)*at + acc[a][b] : acc[a][b];
            }
    }
}
