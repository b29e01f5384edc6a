/* tensor/cpu/adaptive_pool2d_vectors.h: adaptive pools whose windows are equal and disjoint, 1, 2, 4 or 8 columns wide; adaptive_pool2d_equal.h includes it once
 * per element type and width of vectors. The bits are those of the general way, which takes every other shape.
 *
 * The columns of a plane's rows of windows, each made of its lines, are one stream of vectors, L columns each; kw vectors make L outputs, which follow each
 * other in memory, whatever row they are of. So vectors end where lines do, and outputs are a multiple of L: E(fits). Neighbours within a vector are brought
 * together by taking the even and the odd places of two.
 *
 * Expects T, I (the integer as wide), L, E(name), EVEN = 0, 2, … and IOTA = 0, 1, … (L numbers each).
 */
typedef T E(vec) __attribute__((vector_size(sizeof(T) * L)));
typedef T E(vec_at) __attribute__((vector_size(sizeof(T) * L), aligned(4), may_alias));
typedef I E(ints) __attribute__((vector_size(sizeof(I) * L)));
typedef int32_t E(places) __attribute__((vector_size(4 * L)));
typedef int32_t E(places_at) __attribute__((vector_size(4 * L), aligned(4), may_alias));

static inline bool E(fits)(const td_conv2d_shape *s)
{
    const int64_t kw = s->w / s->ow;
    return s->h % s->oh == 0 && s->w % s->ow == 0 && s->w % L == 0 && s->oh * s->ow % L == 0 && (kw == 1 || kw == 2 || kw == 4 || kw == 8);
}

static inline E(vec) E(load)(const T *x)
{
    return *(const E(vec_at) *)x;
}

static inline void E(store)(T *x, E(vec) v)
{
    *(E(vec_at) *)x = v;
}

static inline E(vec) E(even)(E(vec) a, E(vec) b)
{
    return __builtin_shuffle(a, b, (E(ints)){ EVEN });
}

static inline E(vec) E(odd)(E(vec) a, E(vec) b)
{
    return __builtin_shuffle(a, b, (E(ints)){ EVEN } + 1);
}

static inline E(ints) E(choose)(E(ints) which, E(ints) a, E(ints) b)
{
    return (a & which) | (b & ~which);
}

/* Of L outputs, one a lane, those that the columns of vector p belong to */
static inline E(ints) E(owners)(int kw, int p)
{
    return ((E(ints)){ IOTA } + p * L) / kw;
}

/* false: what has been written is worth nothing, for there may be a NaN. (Their sum is one then; it also is where infinities meet.) */
ALWAYS bool E(max_of)(const td_conv2d_shape *s, int kw, T *y, int32_t *where, const T *x)
{
    const int64_t w = s->w, lines = s->h / s->oh, out = s->oh * s->ow;
    E(vec) sum = { 0 };
    for (int64_t o = 0, here = 0, left = 0; o < out; o += L) {
        E(vec) best[8];
        E(ints) at[8];
        _Pragma("GCC unroll 8")
        for (int p = 0; p < kw; p++) {
            const T *from = x + here;
            E(vec) most = E(load)(from), column = most;
            E(ints) line = { 0 };
            for (int64_t h = 1; h < lines; h++) {
                const E(vec) v = E(load)(from + h * w);
                const E(ints) wins = v > most;
                most = (E(vec))E(choose)(wins, (E(ints))v, (E(ints))most);
                line = E(choose)(wins, (E(ints)){ 0 } + (I)(h * w), line);
                column += v;
            }
            sum += column;
            best[p] = most;
            at[p] = line + ((E(ints)){ IOTA } + (I)here);
            here += L, left += L;
            if (left == w)
                left = 0, here += (lines - 1) * w;
        }
        _Pragma("GCC unroll 4")
        for (int n = kw / 2; n > 0; n /= 2)
            _Pragma("GCC unroll 4")
            for (int i = 0; i < n; i++) {
                const E(vec) a = E(even)(best[2 * i], best[2 * i + 1]), b = E(odd)(best[2 * i], best[2 * i + 1]);
                const E(ints) at_a = (E(ints))E(even)((E(vec))at[2 * i], (E(vec))at[2 * i + 1]);
                const E(ints) at_b = (E(ints))E(odd)((E(vec))at[2 * i], (E(vec))at[2 * i + 1]);
                const E(ints) wins = (b > a) | ((b == a) & (at_b < at_a));
                best[i] = (E(vec))E(choose)(wins, (E(ints))b, (E(ints))a);
                at[i] = E(choose)(wins, at_b, at_a);
            }
        E(store)(y + o, best[0]);
        *(E(places_at) *)(where + o) = __builtin_convertvector(at[0], E(places));
    }
    T all = 0;
    for (int j = 0; j < L; j++)
        all += sum[j];
    return all == all;
}

/* Writes every element of gx. 0 + g, as where gradients are added to zeros: it turns -0 into 0. */
ALWAYS void E(max_grad_of)(const td_conv2d_shape *s, int kw, T *gx, const T *gy, const int32_t *where)
{
    const int64_t w = s->w, lines = s->h / s->oh, out = s->oh * s->ow;
    for (int64_t o = 0, here = 0, left = 0; o < out; o += L) {
        const E(vec) g = E(load)(gy + o) + 0;
        const E(places) place = *(const E(places_at) *)(where + o);
        const E(ints) at = __builtin_convertvector(place, E(ints));
        _Pragma("GCC unroll 8")
        for (int p = 0; p < kw; p++) {
            const E(ints) each = (E(ints))__builtin_shuffle(g, E(owners)(kw, p));
            const E(ints) from = __builtin_shuffle(at, E(owners)(kw, p)) - ((E(ints)){ IOTA } + (I)here);
            for (int64_t h = 0; h < lines; h++)
                E(store)(gx + here + h * w, (E(vec))(each & (from == (I)(h * w))));
            here += L, left += L;
            if (left == w)
                left = 0, here += (lines - 1) * w;
        }
    }
}

ALWAYS void E(avg_grad_of)(const td_conv2d_shape *s, int kw, T *gx, const T *gy, bool add)
{
    const int64_t w = s->w, lines = s->h / s->oh, out = s->oh * s->ow;
    const T count = (T)(lines * kw);
    for (int64_t o = 0, here = 0, left = 0; o < out; o += L) {
        const E(vec) g = E(load)(gy + o) / count;
        _Pragma("GCC unroll 8")
        for (int p = 0; p < kw; p++) {
            const E(vec) each = __builtin_shuffle(g, E(owners)(kw, p));
            for (int64_t h = 0; h < lines; h++)
                E(store)(gx + here + h * w, (add ? E(load)(gx + here + h * w) : (E(vec)){ 0 }) + each);
            here += L, left += L;
            if (left == w)
                left = 0, here += (lines - 1) * w;
        }
    }
}

#define EACH_WIDTH(call)                                                                                     \
    switch (s->w / s->ow) {                                                                                  \
    case 1: call(1); break;                                                                                  \
    case 2: call(2); break;                                                                                  \
    case 4: call(4); break;                                                                                  \
    default: call(8);                                                                                        \
    }

static bool E(max)(const td_conv2d_shape *s, T *y, int32_t *where, const T *x)
{
#define CALL(kw) return E(max_of)(s, kw, y, where, x)
    EACH_WIDTH(CALL)
#undef CALL
}

static void E(max_grad)(const td_conv2d_shape *s, T *gx, const T *gy, const int32_t *where)
{
#define CALL(kw) E(max_grad_of)(s, kw, gx, gy, where)
    EACH_WIDTH(CALL)
#undef CALL
}

static void E(avg_grad)(const td_conv2d_shape *s, T *gx, const T *gy, bool add)
{
#define CALL(kw) E(avg_grad_of)(s, kw, gx, gy, add)
    EACH_WIDTH(CALL)
#undef CALL
}
#undef EACH_WIDTH
