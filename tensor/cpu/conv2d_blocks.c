/* tensor/cpu/conv2d_blocks.c: convolutions of many channels as products between vectors of channels, for what Winograd's algorithm leaves: strides, windows
 * of 1x1 and others, few pixels.
 *
 * The images of a group lie turned in zero-padded frames, [block of LANES channels][row][column][LANES]. A pass computes the pixels of one phase of the
 * result (the forward has one; the gradient of x with stride s has s*s, as conv2d.c says): for a piece of at most `piece` pixels the frames' vectors that its
 * terms meet are copied side by side, [term][block][pixel][LANES], and multiplied with the weights, [strip][term][channel][STRIP]. The copy is used once per
 * output channel, so it costs little, and it never holds more than a piece.
 *
 * A result's sum runs over terms and channels in order: it depends on neither threads nor the number of images. The weights' gradient adds one
 * sum per piece, whose borders depend on the shape alone.
 */
#include "cpu.h"
#include <omp.h>

#pragma GCC optimize("fp-contract=fast", "no-predictive-commoning")
#include "conv2d_lanes.h"
enum {
    CACHE = 512 * 1024,              /* bytes of a piece's operands: a core's second cache holds them                        */
    FEW = 28, MANY = 224,            /* pixels of a piece, at least and at most                                              */
    FEW_SUMMED = 112,                /* at least, where whole sums are read and written for each                             */
    MOST_TAPS = 64,
    PARALLEL = 1 << 18,
};

typedef struct {
    int64_t first, terms;            /* among the layout's terms                                                             */
    int64_t base, rows, cols;        /* pixel (r, c) reads from base + (r*row + c) * in_step on                              */
    int64_t top, left;               /* and is pixel (r*out_step + top, c*out_step + left) of the result                     */
} pass;

typedef struct {
    int64_t c, h, w, o, oh, ow;      /* of the images read and of the result                                                 */
    int64_t c_blocks, strips;
    int64_t pad_top, pad_left, row, plane;    /* vectors: of a frame's row, of one block's frame                               */
    int64_t in_step, out_step, terms, passes;
    int64_t *off, *tap;              /* per term: its place from a pixel's, and the weight's place in the window              */
    pass *pass;
    int64_t piece, images;           /* pixels of a piece; images of a group                                                 */
    bool straight;                   /* 1x1 over whole images                                                                */
} layout;

static inline int64_t down(int64_t a, int64_t b)
{
    return a >= 0 ? a / b : -up(-a, b);
}

static inline int64_t up_signed(int64_t a, int64_t b)
{
    return -down(-a, b);
}

static bool layout_room(layout *l, const td_conv2d_shape *s, int64_t passes)
{
    const int64_t taps = s->kh * s->kw;
    l->off = td__alloc((size_t)(2 * taps) * sizeof(int64_t) + (size_t)passes * sizeof(pass));
    if (!l->off)
        return false;
    l->tap = l->off + taps;
    l->pass = (pass *)(l->tap + taps);
    return true;
}

/* Pieces that fit the cache with their products, in multiples of a register tile; groups of as many images as fill one. */
static void layout_cut(layout *l, int64_t few, int64_t n, int threads)
{
    const int64_t per_pixel = (l->terms * l->c_blocks + l->strips * NB) * LANES * (int64_t)sizeof(float);
    const int64_t pixels = larger(l->pass[0].rows * l->pass[0].cols, 1);
    l->straight = l->passes == 1 && l->terms == 1 && l->in_step == 1 && l->off[0] == 0 && l->plane == l->h * l->w && pixels == l->plane;
    l->piece = smaller(larger(CACHE / per_pixel, few), MANY) / NT * NT;
    l->images = smaller(up(l->piece, pixels), up(n, threads));
}

static bool layout_forward(layout *l, const td_conv2d_shape *s)
{
    const int64_t st = s->stride, d = s->dilation;
    *l = (layout){ .c = s->c, .h = s->h, .w = s->w, .o = s->o, .oh = s->oh, .ow = s->ow, .c_blocks = up(s->c, LANES), .strips = up(s->o, STRIP),
                   .pad_top = s->padding, .pad_left = s->padding, .in_step = st, .out_step = 1, .terms = s->kh * s->kw, .passes = 1 };
    if (!layout_room(l, s, 1))
        return false;
    l->row = larger(s->w + s->padding, (s->ow - 1) * st + d * (s->kw - 1) + 1);
    l->plane = larger(s->h + s->padding, (s->oh - 1) * st + d * (s->kh - 1) + 1) * l->row;
    for (int64_t k = 0; k < l->terms; k++) {
        l->off[k] = k / s->kw * d * l->row + k % s->kw * d;
        l->tap[k] = k;
    }
    l->pass[0] = (pass){ .terms = l->terms, .rows = s->oh, .cols = s->ow };
    return true;
}

static bool layout_to_x(layout *l, const td_conv2d_shape *s)
{
    const int64_t st = s->stride, p = s->padding, d = s->dilation;
    const int64_t top = larger(0, (s->kh - 1) * d / st - p / st), bottom = larger(0, (p + s->h - 1) / st - (s->oh - 1));
    const int64_t left = larger(0, (s->kw - 1) * d / st - p / st), right = larger(0, (p + s->w - 1) / st - (s->ow - 1));
    *l = (layout){ .c = s->o, .h = s->oh, .w = s->ow, .o = s->c, .oh = s->h, .ow = s->w, .c_blocks = up(s->o, LANES), .strips = up(s->c, STRIP),
                   .pad_top = top, .pad_left = left, .in_step = 1, .out_step = st };
    if (!layout_room(l, s, st * st))
        return false;
    l->row = left + s->ow + right;
    l->plane = (top + s->oh + bottom) * l->row;
    for (int64_t i = 0; i < st; i++)
        for (int64_t j = 0; j < st; j++) {
            const int64_t a0 = up_signed(p - i, st), a1 = down(p + s->h - 1 - i, st), b0 = up_signed(p - j, st), b1 = down(p + s->w - 1 - j, st);
            if (a1 < a0 || b1 < b0)
                continue;
            pass *q = &l->pass[l->passes++];
            *q = (pass){ .first = l->terms, .base = a0 * l->row + b0, .rows = a1 - a0 + 1, .cols = b1 - b0 + 1, .top = a0 * st + i - p,
                         .left = b0 * st + j - p };
            for (int64_t k = 0; k < s->kh * s->kw; k++) {
                const int64_t kh = k / s->kw * d, kw = k % s->kw * d;
                if (kh % st != i || kw % st != j)
                    continue;
                l->off[l->terms] = (top - kh / st) * l->row + left - kw / st;
                l->tap[l->terms++] = k;
                q->terms++;
            }
        }
    return true;
}

/* ---- weights ---- */

/* One block of output channels to its place in u, [strip][term][channel][STRIP]. Forward: w (o,c,taps) as it lies; to_x: its rows are the inputs. `line`:
 * c*taps + LANES vectors. */
static void weights(const layout *l, bool to_x, int64_t taps, int64_t block, float *u, float *line, const float *w)
{
    const int64_t rows = l->o - block * LANES, channels = l->c_blocks * LANES;
    float *to = u + block / NB * l->terms * channels * STRIP + block % NB * LANES;
    for (int64_t e = 0; rows > 0 && !to_x && e < l->c * taps; e += LANES) {
        vec v[LANES];
        load_turned(v, w + block * LANES * l->c * taps, l->c * taps, rows, e, l->c * taps);
        for (int j = 0; j < LANES; j++)
            *(vec_at *)(line + (e + j) * LANES) = v[j];
    }
    float few[(MOST_TAPS + 1) * LANES] = { 0 };   /* so that whole vectors may be read                                          */
    for (int64_t c = 0; rows > 0 && to_x && c < l->c; c++) {
        memcpy(few, w + (c * l->o + block * LANES) * taps, sizeof(float) * (size_t)(smaller(rows, LANES) * taps));
        if (taps == 1)
            *(vec_at *)(line + c * LANES) = *(const vec_at *)few;
        for (int64_t e = 0; taps > 1 && e < taps; e += LANES) {
            vec v[LANES];
            load_turned(v, few, taps, rows, e, e + LANES);
            for (int64_t j = 0; j < LANES && e + j < taps; j++)
                *(vec_at *)(line + (c * taps + e + j) * LANES) = v[j];
        }
    }
    for (int64_t k = 0; k < l->terms; k++)
        for (int64_t c = 0; c < channels; c++, to += STRIP)
            *(vec_at *)to = rows > 0 && c < l->c ? (vec)*(const vec_at *)(line + (c * taps + l->tap[k]) * LANES) : (vec){ 0 };
}

/* ---- pieces ---- */

/* Pixels [first, first + count) of a group's pass: all images' pixels in order. What they meet, to v [term][block][pixel][LANES] */
static void gather(const layout *l, const pass *p, float *v, const float *frames, int64_t first, int64_t count)
{
    const int64_t pixels = p->rows * p->cols, frame = l->c_blocks * l->plane;
    for (int64_t at = 0, run; at < count; at += run) {
        const int64_t q = first + at, image = q / pixels, r = q % pixels / p->cols, c = q % p->cols;
        run = smaller(p->cols - c, count - at);
        const float *from = frames + (image * frame + (p->base + r * l->row + c) * l->in_step) * LANES;
        for (int64_t k = 0; k < p->terms; k++)
            for (int64_t block = 0; block < l->c_blocks; block++) {
                const float *x = from + (block * l->plane + l->off[p->first + k]) * LANES;
                float *to = v + ((k * l->c_blocks + block) * count + at) * LANES;
                for (int64_t j = 0; j < run; j++)
                    *(vec_at *)(to + j * LANES) = *(const vec_at *)(x + j * l->in_step * LANES);
            }
    }
}

/* The same for windows of 1x1 over whole images, straight from x: no frame is needed */
static void turn_pixels(const layout *l, float *v, const float *x, int64_t first, int64_t count)
{
    const int64_t pixels = l->h * l->w;
    for (int64_t at = 0, run; at < count; at += run) {
        const int64_t image = (first + at) / pixels, pixel = (first + at) % pixels;
        run = smaller(pixels - pixel, count - at);
        for (int64_t block = 0; block < l->c_blocks; block++) {
            const float *from = x + (image * l->c + block * LANES) * pixels;
            float *to = v + (block * count + at) * LANES;
            for (int64_t q = 0; q < run; q += LANES) {
                vec t[LANES];
                load_turned(t, from, pixels, l->c - block * LANES, pixel + q, pixels);
                for (int64_t j = 0; j < LANES && q + j < run; j++)
                    *(vec_at *)(to + (q + j) * LANES) = t[j];
            }
        }
    }
}

/* Products [block][pixel][LANES] of such pixels to the result: straight, where the pass is all of it, or to `whole` [image][block][pixel][LANES] */
static void scatter(const layout *l, const pass *p, float *whole, const float *m, int64_t first, int64_t count)
{
    const int64_t pixels = p->rows * p->cols, blocks = l->strips * NB, size = l->oh * l->ow;
    for (int64_t at = 0, run; at < count; at += run) {
        const int64_t q = first + at, image = q / pixels, r = q % pixels / p->cols, c = q % p->cols;
        run = smaller(p->cols - c, count - at);
        for (int64_t block = 0; block < blocks; block++) {
            float *to = whole + ((image * blocks + block) * size + (r * l->out_step + p->top) * l->ow + c * l->out_step + p->left) * LANES;
            const float *from = m + (block * count + at) * LANES;
            for (int64_t j = 0; j < run; j++)
                *(vec_at *)(to + j * l->out_step * LANES) = *(const vec_at *)(from + j * LANES);
        }
    }
}

/* `count` pixels from `at` on of one image, [block][pixel][LANES] with `apart` pixels between blocks */
static void finish(const layout *l, float *out, const float *from, int64_t apart, int64_t at, int64_t count, const float *bias, bool add)
{
    const int64_t size = l->oh * l->ow;
    for (int64_t block = 0; block < up(l->o, LANES); block++)
        for (int64_t q = 0; q < count; q += LANES) {
            vec v[LANES];
            for (int64_t j = 0; j < LANES; j++)
                v[j] = q + j < count ? (vec)*(const vec_at *)(from + (block * apart + q + j) * LANES) : (vec){ 0 };
            store_turned(out + block * LANES * size + at, size, l->o - block * LANES, q, count, v, bias ? bias + block * LANES : NULL, add);
        }
}

static void place_all(const layout *l, float *frame, const float *x)
{
    for (int64_t block = 0; block < l->c_blocks; block++)
        place(frame + (block * l->plane + l->pad_top * l->row) * LANES, l->row, l->pad_left, x + block * LANES * l->h * l->w, l->c - block * LANES, l->h, l->w, 0,
              l->h);
}

/* One group of images through all passes. mine: frames, a piece's operands and products, and where passes are several the whole result. */
static void group(const layout *l, int64_t images, float *out, const float *x, const float *u, const float *bias, bool add, float *frames, float *v, float *m,
                  float *whole)
{
    const int64_t frame = l->c_blocks * l->plane * LANES, blocks = l->strips * NB, channels = l->c_blocks * LANES, size = l->oh * l->ow;
    for (int64_t i = 0; i < images && !l->straight; i++)
        place_all(l, frames + i * frame, x + i * l->c * l->h * l->w);
    for (const pass *p = l->pass; p < l->pass + l->passes; p++) {
        const int64_t pixels = p->rows * p->cols, all = images * pixels, pieces = up(all, l->piece);
        for (int64_t i = 0; i < pieces; i++) {
            const int64_t first = all * i / pieces, count = all * (i + 1) / pieces - first;
            if (l->straight)
                turn_pixels(l, v, x, first, count);
            else
                gather(l, p, v, frames, first, count);
            for (int64_t strip = 0; strip < l->strips; strip++)
                products(m + strip * NB * count * LANES, u + (strip * l->terms + p->first) * channels * STRIP, v, count, p->terms * l->c_blocks, false);
            if (whole)
                scatter(l, p, whole, m, first, count);
            for (int64_t at = 0, run; !whole && at < count; at += run) {
                const int64_t image = (first + at) / pixels, pixel = (first + at) % pixels;
                run = smaller(pixels - pixel, count - at);
                finish(l, out + image * l->o * size, m + at * LANES, count, pixel, run, bias, add);
            }
        }
    }
    for (int64_t i = 0; whole && i < images; i++)
        finish(l, out + i * l->o * size, whole + i * blocks * size * LANES, size, 0, size, bias, add);
}

static int threads_for(const td_conv2d_shape *s)
{
    return s->n * s->oh * s->ow * s->o * s->c * s->kh * s->kw < PARALLEL || omp_in_parallel() ? 1 : omp_get_max_threads();
}

void K(conv2d_blocks)(const td_conv2d_shape *s, bool to_x, float *out, const float *in, const float *w, const float *bias, bool add)
{
    layout l;
    const int threads = threads_for(s);
    if (!(to_x ? layout_to_x(&l, s) : layout_forward(&l, s)))
        return;
    layout_cut(&l, FEW, s->n, threads);
    const int64_t channels = l.c_blocks * LANES, blocks = l.strips * NB, frames = l.straight ? 0 : l.images * l.c_blocks * l.plane * LANES,
                  piece = l.piece * l.terms * channels, result = l.piece * blocks * LANES, taps = s->kh * s->kw, line = (l.c * taps + LANES) * LANES,
                  whole = l.passes > 1 || l.out_step > 1 ? l.images * blocks * l.oh * l.ow * LANES : 0, own = larger(frames + piece + result + whole, line),
                  u_size = l.strips * l.terms * channels * STRIP;
    float *u = td__alloc(sizeof(float) * (size_t)(u_size + threads * own));
    if (!u) {
        td__free(l.off);
        return;
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *mine = u + u_size + omp_get_thread_num() % threads * own;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++)
            weights(&l, to_x, taps, block, u, mine, w);
        memset(mine, 0, sizeof(float) * (size_t)frames);
        if (whole)                   /* pixels that no pass reaches                                                          */
            memset(mine + own - whole, 0, sizeof(float) * (size_t)whole);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s->n; i += l.images)
            group(&l, smaller(l.images, s->n - i), out + i * l.o * l.oh * l.ow, in + i * l.c * l.h * l.w, u, bias, add, mine, mine + frames,
                  mine + frames + piece, whole ? mine + own - whole : NULL);
    }
    td__free(u);
    td__free(l.off);
}

void K(conv2d_blocks_weights)(const td_conv2d_shape *s, float *gw, const float *gout, const float *x, bool add)
{
    layout l;
    const int threads = threads_for(s);
    if (!layout_forward(&l, s))
        return;
    layout_cut(&l, FEW_SUMMED, s->n, 1);         /* of the shape alone: sums per piece                                                   */
    const int64_t channels = l.c_blocks * LANES, blocks = l.strips * NB, frame = l.c_blocks * l.plane * LANES, pixels = s->oh * s->ow, taps = s->kh * s->kw,
                  v_size = l.piece * l.terms * channels, g_size = l.images * blocks * pixels * LANES, w_size = l.strips * l.terms * channels * STRIP,
                  line = (l.c * taps + LANES) * LANES;
    const bool in_place = l.straight && l.images == 1;   /* a frame is what would be gathered                                     */
    float *sums = td__alloc(sizeof(float) * (size_t)(w_size + l.images * frame + g_size + v_size + threads * line));
    float *frames = sums + w_size, *g = frames + l.images * frame, *v = g + g_size, *lines = v + v_size;
    if (!sums) {
        td__free(l.off);
        return;
    }
    memset(sums, 0, sizeof(float) * (size_t)(w_size + l.images * frame + g_size));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *mine = lines + omp_get_thread_num() % threads * line;
        for (int64_t i0 = 0; i0 < s->n; i0 += l.images) {
            const int64_t images = smaller(l.images, s->n - i0), all = images * pixels, pieces = up(all, l.piece);
#pragma omp for schedule(static)
            for (int64_t item = 0; item < images * (l.c_blocks + up(l.o, LANES)); item++) {
                const int64_t image = item % images, block = item / images, o_block = block - l.c_blocks;
                if (block < l.c_blocks)
                    place(frames + image * frame + (block * l.plane + l.pad_top * l.row) * LANES, l.row, l.pad_left,
                          x + ((i0 + image) * l.c + block * LANES) * l.h * l.w, l.c - block * LANES, l.h, l.w, 0, l.h);
                else                 /* [block][image][pixel]: the group's pixels in order                                   */
                    place(g + (o_block * l.images + image) * pixels * LANES, s->ow, 0, gout + ((i0 + image) * l.o + o_block * LANES) * pixels,
                          l.o - o_block * LANES, s->oh, s->ow, 0, s->oh);
            }
            for (int64_t i = 0; i < pieces; i++) {
                const int64_t first = all * i / pieces, count = all * (i + 1) / pieces - first;
                if (!in_place) {
#pragma omp single
                    gather(&l, l.pass, v, frames, first, count);
                }
#pragma omp for schedule(static)
                for (int64_t item = 0; item < l.strips * l.terms * l.c_blocks; item++) {
                    const int64_t strip = item / (l.terms * l.c_blocks), part = item % (l.terms * l.c_blocks);
                    const float *part_v = in_place ? frames + (part * l.plane + first) * LANES : v + part * count * LANES;
                    summed(sums + item * LANES * STRIP, part_v, g + (strip * NB * l.images * pixels + first) * LANES, l.images * pixels * LANES, count, true);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < up(l.o, LANES); block++) {
            const float *from = sums + block / NB * l.terms * channels * STRIP + block % NB * LANES;
            for (int64_t c = 0; c < l.c; c++)
                for (int64_t k = 0; k < taps; k++)
                    *(vec_at *)(mine + (c * taps + k) * LANES) = *(const vec_at *)(from + (k * channels + c) * STRIP);
            for (int64_t e = 0; e < l.c * taps; e += LANES) {
                vec t[LANES];
                for (int64_t j = 0; j < LANES; j++)
                    t[j] = e + j < l.c * taps ? (vec)*(const vec_at *)(mine + (e + j) * LANES) : (vec){ 0 };
                store_turned(gw + block * LANES * l.c * taps, l.c * taps, l.o - block * LANES, e, l.c * taps, t, NULL, add);
            }
        }
    }
    td__free(sums);
    td__free(l.off);
}

/* Full blocks of channels, or nearly: what lies idle in lanes is at most a fifth. */
static bool fills(int64_t channels, int64_t width)
{
    return channels >= 16 && up(channels, width) * width * 4 <= channels * 5;
}

bool K(conv2d_by_blocks)(td_dtype t, const td_conv2d_shape *s)
{
    return t == TD_F32 && s->n > 0 && s->groups == 1 && s->kh * s->kw <= MOST_TAPS && fills(s->c, 16) && fills(s->o, 32);
}
