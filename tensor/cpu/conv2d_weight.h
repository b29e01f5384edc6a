/* tensor/cpu/conv2d_weight.h: the gradients of a convolution's weights and bias for one element type; included after conv2d_body.h.
 *
 * Two products keep their accumulators in registers and read the image in place:
 *
 * - tile_weight: A terms by B vectors of output channels (A1 by one, where one holds them all). Per pixel the vectors of gout, transposed to
 *   [strip][pixel][channel], meet A broadcast values of x. No sums across lanes are needed. `run` terms with neighbouring offsets (the
 *   kernel's columns) share one pointer, which keeps the pointers in registers.
 * - tile_dot, for groups with few output channels (depthwise): K terms of one output channel, lanes along the virtual positions. gout lies
 *   spread as the image does; a mask hides what lies between its rows, so that nothing but the sum's own terms is multiplied.
 */
/* gw[a][0 … nb*lanes) += sum over pixels of x[off[a] + pixel] * g[pixel][…]; na, nb and run are constants after inlining */
static inline __attribute__((always_inline)) void F(tile_weight)(const int na, const int nb, const int run, T *gw, const T *g, const T *x,
                                                                 const int64_t *off, int64_t rows, int64_t cols, int64_t row_step)
{
    F(vec) acc[CONV_A1][CONV_B];
#pragma GCC unroll 32
    for (int a = 0; a < na; a++)
#pragma GCC unroll 16
        for (int b = 0; b < nb; b++)
            acc[a][b] = (F(vec)){ 0 };
    for (int64_t r = 0; r < rows; r++, x += row_step) {
        const T *p[CONV_A1];
#pragma GCC unroll 32
        for (int a = 0; a < na; a += run)
            p[a] = x + off[a];
        for (int64_t c = 0; c < cols; c++, g += nb * F(lanes)) {
            F(vec) gv[CONV_B];
#pragma GCC unroll 16
            for (int b = 0; b < nb; b++)
                gv[b] = *(const F(vecu) *)(g + b * F(lanes));
#pragma GCC unroll 32
            for (int a = 0; a < na; a++)
#pragma GCC unroll 16
                for (int b = 0; b < nb; b++)
                    acc[a][b] += gv[b] * p[a - a % run][c + a % run];
        }
    }
#pragma GCC unroll 32
    for (int a = 0; a < na; a++)
#pragma GCC unroll 16
        for (int b = 0; b < nb; b++)
            *(F(vecu) *)(gw + (a * nb + b) * F(lanes)) += acc[a][b];
}

/* Terms [0, terms) in tiles as large as fit, beside nb vectors. Tile sizes are multiples of `run`, and so are the terms. */
static void F(weight_terms)(int nb, int run, int64_t terms, T *gw, const T *g, const T *x, const int64_t *off, int64_t rows, int64_t cols,
                            int64_t row_step)
{
#define TILE(na, vectors, neighbours) F(tile_weight)(na, vectors, neighbours, gw, g, x, off, rows, cols, row_step), n = na
    for (int64_t n; terms > 0; terms -= n, off += n, gw += n * nb * F(lanes)) {
        if (run == 3 && nb == 1) {
            if (terms >= CONV_A1)
                TILE(CONV_A1, 1, 3);
            else if (terms >= 6)
                TILE(6, 1, 3);
            else
                TILE(3, 1, 3);
        } else if (run == 3) {
            if (terms >= CONV_A)
                TILE(CONV_A, CONV_B, 3);
            else if (terms >= 6)
                TILE(6, CONV_B, 3);
            else
                TILE(3, CONV_B, 3);
        } else if (nb == 1) {
            if (terms >= CONV_A)
                TILE(CONV_A, 1, 1);
            else if (terms >= 4)
                TILE(4, 1, 1);
            else
                TILE(1, 1, 1);
        } else {
            if (terms >= CONV_A)
                TILE(CONV_A, CONV_B, 1);
            else if (terms >= 4)
                TILE(4, CONV_B, 1);
            else
                TILE(1, CONV_B, 1);
        }
    }
#undef TILE
}

/* Four pixels of four channels, `pixels` apart, become four channels of four pixels, `width` apart. */
static inline __attribute__((always_inline)) void F(turn)(T *to, int64_t width, const T *from, int64_t pixels)
{
    typedef T four __attribute__((vector_size(4 * sizeof(T))));
    typedef T four_at __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
    typedef I places __attribute__((vector_size(4 * sizeof(T))));
    const places low = { 0, 4, 1, 5 }, high = { 2, 6, 3, 7 };
    four a = *(const four_at *)from, b = *(const four_at *)(from + pixels), c = *(const four_at *)(from + 2 * pixels),
         d = *(const four_at *)(from + 3 * pixels);
    four ac = __builtin_shuffle(a, c, low), bd = __builtin_shuffle(b, d, low), ac2 = __builtin_shuffle(a, c, high),
         bd2 = __builtin_shuffle(b, d, high);
    *(four_at *)to = __builtin_shuffle(ac, bd, low);
    *(four_at *)(to + width) = __builtin_shuffle(ac, bd, high);
    *(four_at *)(to + 2 * width) = __builtin_shuffle(ac2, bd2, low);
    *(four_at *)(to + 3 * width) = __builtin_shuffle(ac2, bd2, high);
}

/* gout (o, pixels) to strips [strip][pixel][width], missing channels zero */
static void F(strips)(int64_t o, int64_t pixels, int64_t width, T *to, const T *gout)
{
    for (int64_t s = 0; s < o; s += width, to += pixels * width) {
        const int64_t no = o - s < width ? o - s : width;
        const T *from = gout + s * pixels;
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t j = no / 4 * 4; j < width; j++)
                to[p * width + j] = j < no ? from[j * pixels + p] : 0;
        for (int64_t p = 0; p < pixels; p += 4)
            for (int64_t j = 0; j + 4 <= no; j += 4) {
                if (p + 4 <= pixels) {
                    F(turn)(to + p * width + j, width, from + j * pixels + p, pixels);
                    continue;
                }
                for (int64_t i = p; i < pixels; i++)
                    for (int64_t k = j; k < j + 4; k++)
                        to[i * width + k] = from[k * pixels + i];
            }
    }
}

/* One of the groups; x, gout and gw begin with it. gw (o, terms): each element sums over images in order, and within an image over pixels in
 * order, by one thread: the number of threads cannot change it. Threads share the placing of a batch of images, then divide the tiles. */
static void F(run_weight)(int64_t n, int64_t groups, const conv_frame *f, int64_t o, int64_t rows, int64_t cols, int64_t terms,
                          const int64_t *off, int run, T *gw, const T *gout, const T *x, bool add)
{
    enum { block = 4 * CONV_A };
    const int nb = o <= F(lanes) ? 1 : CONV_B;
    const int64_t width = nb * F(lanes);
    const int64_t strips = (o + width - 1) / width, blocks = (terms + block - 1) / block, pixels = rows * cols;
    const int64_t frame = round_up(f->size + F(lanes), 64), strip = pixels * width, sum_size = strips * terms * width;
    const int threads = n * pixels * o * terms < CONV_PARALLEL ? 1 : conv_max_threads();
    int64_t batch = CONV_L2 / (int64_t)sizeof(T) / (frame + strips * strip);
    batch = larger(batch, 1) * threads;                  /* every thread has its own second cache, and places at least one image       */
    batch = batch > n ? n : batch;
    T *space = td__alloc(sizeof(T) * (size_t)(round_up(sum_size, 64) + batch * (frame + round_up(strips * strip, 64))));
    if (!space)
        return;
    T *sum = space, *frames = sum + round_up(sum_size, 64), *gs = frames + batch * frame;
    const int64_t gs_size = round_up(strips * strip, 64), in_size = groups * f->channels * f->h * f->w;
    memset(sum, 0, sizeof(T) * (size_t)sum_size);
    memset(frames, 0, sizeof(T) * (size_t)(batch * frame));
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t i0 = 0; i0 < n; i0 += batch) {
        int64_t images = n - i0 < batch ? n - i0 : batch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            F(place)(f, frames + i * frame, x + (i0 + i) * in_size);
            F(strips)(o, pixels, width, gs + i * gs_size, gout + (i0 + i) * groups * o * pixels);
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < strips * blocks; item++) {
            int64_t s = item / blocks, k = item % blocks * block, nk = terms - k < block ? terms - k : block;
            for (int64_t i = 0; i < images; i++)
                F(weight_terms)(nb, run, nk, sum + (s * terms + k) * width, gs + i * gs_size + s * strip, frames + i * frame, off + k,
                                rows, cols, f->row);
        }
    }
    for (int64_t j = 0; j < o; j++)
        for (int64_t k = 0; k < terms; k++) {
            T v = sum[(j / width * terms + k) * width + j % width];
            gw[j * terms + k] = add ? gw[j * terms + k] + v : v;
        }
    td__free(space);
}

/* sum[k][lanes] += x[off[k] + position] * g[position] over `vectors` vectors of positions; nk is a constant after inlining */
static inline __attribute__((always_inline)) void F(tile_dot)(const int nk, T *sum, const T *g, const F(mask) *mask, const T *x,
                                                              const int64_t *off, int64_t vectors)
{
    F(vec) acc[CONV_K];
    const T *p[CONV_K];
#pragma GCC unroll 16
    for (int k = 0; k < nk; k++)
        acc[k] = *(const F(vecu) *)(sum + k * F(lanes)), p[k] = x + off[k];
    for (int64_t q = 0; q < vectors; q++) {
        const F(vec) gv = *(const F(vecu) *)(g + q * F(lanes));
        const F(mask) here = mask[q];
#pragma GCC unroll 16
        for (int k = 0; k < nk; k++)
            acc[k] += gv * (F(vec))((F(mask))*(const F(vecu) *)(p[k] + q * F(lanes)) & here);
    }
#pragma GCC unroll 16
    for (int k = 0; k < nk; k++)
        *(F(vecu) *)(sum + k * F(lanes)) = acc[k];
}

/* gw (groups, o, terms), o small: a group's sums are one thread's, over images in order; lanes are added at the end. */
static void F(run_dot)(int64_t n, int64_t groups, const conv_frame *f, int64_t o, int64_t rows, int64_t cols, int64_t terms,
                       const int64_t *off, T *gw, const T *gout, const T *x, bool add)
{
    const int64_t vectors = ((rows - 1) * f->row + cols + F(lanes) - 1) / F(lanes), line = round_up(vectors * F(lanes), 64);
    const int64_t frame = round_up(f->size + F(lanes), 64), sums = round_up(o * terms * F(lanes), 64), own = frame + line + sums;
    const int64_t in_size = f->channels * f->h * f->w, pixels = rows * cols;
    int threads = n * groups * o * pixels * terms < CONV_PARALLEL ? 1 : conv_max_threads();
    threads = groups < threads ? (int)groups : threads;
    T *space = td__alloc(sizeof(T) * (size_t)(line + threads * own));
    if (!space)
        return;
    F(mask) *mask = (F(mask) *)space;
    for (int64_t q = 0; q < vectors; q++)
        for (int64_t j = 0; j < F(lanes); j++) {
            int64_t at = q * F(lanes) + j;
            mask[q][j] = at / f->row < rows && at % f->row < cols ? -1 : 0;
        }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        T *image = space + line + conv_thread() * own, *g = image + frame, *sum = g + line;
        memset(image, 0, sizeof(T) * (size_t)(frame + line));
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; group++) {
            memset(sum, 0, sizeof(T) * (size_t)sums);
            for (int64_t i = group; i < n * groups; i += groups) {
                F(place)(f, image, x + i * in_size);
                for (int64_t j = 0; j < o; j++) {
                    const T *from = gout + (i * o + j) * pixels;
                    for (int64_t r = 0; r < rows; r++)
                        memcpy(g + r * f->row, from + r * cols, sizeof(T) * (size_t)cols);
                    for (int64_t k = 0, step; k < terms; k += step) {
                        T *to = sum + (j * terms + k) * F(lanes);
                        step = terms - k >= CONV_K ? CONV_K : terms - k >= 3 ? 3 : 1;
                        if (step == CONV_K)
                            F(tile_dot)(CONV_K, to, g, mask, image, off + k, vectors);
                        else if (step == 3)
                            F(tile_dot)(3, to, g, mask, image, off + k, vectors);
                        else
                            F(tile_dot)(1, to, g, mask, image, off + k, vectors);
                    }
                }
            }
            for (int64_t k = 0; k < o * terms; k++) {
                T *lane = sum + k * F(lanes), *to = gw + group * o * terms + k;
                for (int64_t width = F(lanes) / 2; width > 0; width /= 2)
                    for (int64_t j = 0; j < width; j++)
                        lane[j] += lane[j + width];
                *to = add ? *to + lane[0] : lane[0];
            }
        }
    }
    td__free(space);
}

static void F(grad_w)(const td_conv2d_shape *s, const conv_frame *f, const int64_t *off, T *gw, const T *gout, const T *x, bool add)
{
    const int64_t o = s->o / s->groups, terms = f->channels * s->kh * s->kw, pixels = s->oh * s->ow;
    const int run = s->stride == 1 && s->dilation == 1 && s->kw == 3 ? 3 : 1;
    if (s->groups > 1 && o <= F(lanes)) {
        F(run_dot)(s->n, s->groups, f, o, s->oh, s->ow, terms, off, gw, gout, x, add);
        return;
    }
    for (int64_t g = 0; g < s->groups; g++)
        F(run_weight)(s->n, s->groups, f, o, s->oh, s->ow, terms, off, run, gw + g * o * terms, gout + g * o * pixels,
                      x + g * f->channels * f->h * f->w, add);
}

/* gbias (o) = sum of gout over images and pixels, in double. A thread takes some channels of every image, in the order in which they lie. */
static void F(run_bias)(int64_t n, int64_t o, int64_t pixels, T *gbias, const T *gout, bool add)
{
    const int threads = n * o * pixels < TD_PARALLEL ? 1 : conv_max_threads();
    double *total = td__alloc((size_t)o * sizeof *total);
    if (!total)
        return;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const int64_t begin = o * part / threads, end = o * (part + 1) / threads;
        for (int64_t j = begin; j < end; j++)
            total[j] = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = begin; j < end; j++) {
                const T *g = gout + (i * o + j) * pixels;
                double sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t p = 0; p < pixels; p++)
                    sum += (double)g[p];
                total[j] += sum;
            }
        for (int64_t j = begin; j < end; j++)
            gbias[j] = (T)(add ? (double)gbias[j] + total[j] : total[j]);
    }
    td__free(total);
}
#undef T
#undef I
#undef F
