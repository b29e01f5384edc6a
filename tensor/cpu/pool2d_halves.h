/* tensor/cpu/pool2d_halves.h: windows of 2 with stride 2 in f32, `WIDTH` at a time; pool2d.c includes it once per width. The last few of a row overlap the
 * ones before, so rows have at least WIDTH windows; every element is computed from what is read, so writing it twice does no harm.
 *
 * Expects WIDTH, H(name), EVEN = 0, 2, … and LOW = 0, WIDTH, 1, WIDTH+1, … (WIDTH numbers each).
 */
typedef float H(vec) __attribute__((vector_size(4 * WIDTH)));
typedef float H(vec_at) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t H(ints) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t H(ints_at) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static inline H(vec) H(load)(const float *x)
{
    return *(const H(vec_at) *)x;
}

static inline void H(store)(float *x, H(vec) v)
{
    *(H(vec_at) *)x = v;
}

/* Of 2 * WIDTH neighbours those at even and at odd places; and back: a[0] b[0] a[1] b[1] … */
static inline H(vec) H(even)(const float *x)
{
    return __builtin_shuffle(H(load)(x), H(load)(x + WIDTH), (H(ints)){ EVEN });
}

static inline H(vec) H(odd)(const float *x)
{
    return __builtin_shuffle(H(load)(x), H(load)(x + WIDTH), (H(ints)){ EVEN } + 1);
}

static inline void H(weave)(float *x, H(vec) a, H(vec) b)
{
    H(store)(x, __builtin_shuffle(a, b, (H(ints)){ LOW }));
    H(store)(x + WIDTH, __builtin_shuffle(a, b, (H(ints)){ LOW } + WIDTH / 2));
}

static inline int64_t H(next)(int64_t at, int64_t n)
{
    return at + 2 * WIDTH <= n || at + WIDTH == n ? at + WIDTH : n - WIDTH;
}

static inline void H(consider)(H(vec) v, H(ints) place, H(vec) *best, H(ints) *at)
{
    const H(ints) wins = (v > *best) | (v != v);
    *best = (H(vec))(((H(ints))v & wins) | ((H(ints))*best & ~wins));
    *at = (place & wins) | (*at & ~wins);
}

static void H(max)(const td_conv2d_shape *s, float *y, int32_t *where, const float *x)
{
    for (int64_t oh = 0; oh < s->oh; oh++, y += s->ow, where += s->ow) {
        const float *a = x + 2 * oh * s->w, *b = a + s->w;
        for (int64_t i = 0; i < s->ow; i = H(next)(i, s->ow)) {
            const H(ints) here = (H(ints)){ EVEN } + (int32_t)(2 * oh * s->w + 2 * i);
            H(ints) at = here;
            H(vec) best = H(even)(a + 2 * i);
            H(consider)(H(odd)(a + 2 * i), here + 1, &best, &at);
            H(consider)(H(even)(b + 2 * i), here + (int32_t)s->w, &best, &at);
            H(consider)(H(odd)(b + 2 * i), here + (int32_t)s->w + 1, &best, &at);
            H(store)(y + i, best);
            *(H(ints_at) *)(where + i) = at;
        }
    }
}

/* Writes the whole rows that windows cover but for an odd last element. */
static void H(max_grad)(const td_conv2d_shape *s, float *gx, const float *gy, const int32_t *where)
{
    for (int64_t oh = 0; oh < s->oh; oh++, gy += s->ow, where += s->ow) {
        float *a = gx + 2 * oh * s->w, *b = a + s->w;
        for (int64_t i = 0; i < s->ow; i = H(next)(i, s->ow)) {
            const H(ints) at = *(const H(ints_at) *)(where + i) - ((H(ints)){ EVEN } + (int32_t)(2 * oh * s->w + 2 * i)), g = (H(ints))H(load)(gy + i);
            H(weave)(a + 2 * i, (H(vec))(g & (at == 0)), (H(vec))(g & (at == 1)));
            H(weave)(b + 2 * i, (H(vec))(g & (at == (int32_t)s->w)), (H(vec))(g & (at == (int32_t)s->w + 1)));
        }
    }
}

static void H(mean)(const td_conv2d_shape *s, float *y, const float *x)
{
    for (int64_t oh = 0; oh < s->oh; oh++, y += s->ow) {
        const float *a = x + 2 * oh * s->w, *b = a + s->w;
        for (int64_t i = 0; i < s->ow; i = H(next)(i, s->ow))
            H(store)(y + i, (H(even)(a + 2 * i) + H(odd)(a + 2 * i) + H(even)(b + 2 * i) + H(odd)(b + 2 * i)) / 4);
    }
}

static void H(mean_grad)(const td_conv2d_shape *s, float *gx, const float *gy)
{
    for (int64_t oh = 0; oh < s->oh; oh++, gy += s->ow) {
        float *a = gx + 2 * oh * s->w, *b = a + s->w;
        for (int64_t i = 0; i < s->ow; i = H(next)(i, s->ow)) {
            const H(vec) g = H(load)(gy + i) / 4;
            H(weave)(a + 2 * i, g, g);
            H(weave)(b + 2 * i, g, g);
        }
    }
}
