/* tensor/cpu/conv2d_body.h: the direct convolution for one element type T; conv2d.c includes it once for float and once for double.
 *
 * Both products keep their accumulators in registers through the whole sum and read the image in place, so there is no column buffer:
 *
 * - tile_out (forward, and gradient of x): M channels by up to Q vectors of neighbouring virtual positions (see conv2d.c). Per term k the
 *   vectors at x + off[k] are loaded unaligned and multiplied by M broadcast weights, which lie packed as [channel tile][k][M].
 * - tile_weight (gradient of w): A terms by B vectors of output channels. Per pixel the B vectors of gout, transposed to [strip][pixel]
 *   [channel], meet A broadcast values of x. No sums across lanes are needed. `RUN` terms with neighbouring offsets (the kernel's columns) share
 *   one pointer, which keeps the pointers in registers.
 *
 * Expects T, F(name), CONV_BYTES (width of a vector) and the tile sizes; undefines T and F at the end.
 */
enum { F(lanes) = CONV_BYTES / (int)sizeof(T) };
typedef T F(vec) __attribute__((vector_size(CONV_BYTES)));
typedef T F(vecu) __attribute__((vector_size(CONV_BYTES), aligned(sizeof(T)), may_alias));

/* out[m][0 … nq*lanes) = start[m] + sum over k of w[k][m] * x[off[k] …]; nq is a constant after inlining */
static inline __attribute__((always_inline)) void F(tile_out)(const int nq, T *out, int64_t ld, const T *w, const T *start,
                                                              const int64_t *off, int64_t terms, const T *x)
{
    F(vec) acc[CONV_M][CONV_Q];
#pragma GCC unroll 16
    for (int m = 0; m < CONV_M; m++)
#pragma GCC unroll 16
        for (int q = 0; q < nq; q++)
            acc[m][q] = start[m] - (F(vec)){ 0 };
    for (int64_t k = 0; k < terms; k++, w += CONV_M) {
        const T *xk = x + off[k];
        F(vec) b[CONV_Q];
#pragma GCC unroll 16
        for (int q = 0; q < nq; q++)
            b[q] = *(const F(vecu) *)(xk + q * F(lanes));
#pragma GCC unroll 16
        for (int m = 0; m < CONV_M; m++)
#pragma GCC unroll 16
            for (int q = 0; q < nq; q++)
                acc[m][q] += b[q] * w[m];
    }
#pragma GCC unroll 16
    for (int m = 0; m < CONV_M; m++)
#pragma GCC unroll 16
        for (int q = 0; q < nq; q++)
            *(F(vecu) *)(out + m * ld + q * F(lanes)) = acc[m][q];
}

/* gw[a][0 … B*lanes) += sum over pixels of x[off[a] + pixel] * g[pixel][…]; na and run are constants after inlining */
static inline __attribute__((always_inline)) void F(tile_weight)(const int na, const int run, T *gw, const T *g, const T *x,
                                                                 const int64_t *off, int64_t rows, int64_t cols, int64_t row_step)
{
    F(vec) acc[CONV_A][CONV_B];
#pragma GCC unroll 16
    for (int a = 0; a < na; a++)
#pragma GCC unroll 16
        for (int b = 0; b < CONV_B; b++)
            acc[a][b] = (F(vec)){ 0 };
    for (int64_t r = 0; r < rows; r++, x += row_step) {
        const T *p[CONV_A];
#pragma GCC unroll 16
        for (int a = 0; a < na; a += run)
            p[a] = x + off[a];
        for (int64_t c = 0; c < cols; c++, g += CONV_B * F(lanes)) {
            F(vec) gv[CONV_B];
#pragma GCC unroll 16
            for (int b = 0; b < CONV_B; b++)
                gv[b] = *(const F(vecu) *)(g + b * F(lanes));
#pragma GCC unroll 16
            for (int a = 0; a < na; a++)
#pragma GCC unroll 16
                for (int b = 0; b < CONV_B; b++)
                    acc[a][b] += gv[b] * p[a - a % run][c + a % run];
        }
    }
#pragma GCC unroll 16
    for (int a = 0; a < na; a++)
#pragma GCC unroll 16
        for (int b = 0; b < CONV_B; b++)
            *(F(vecu) *)(gw + (a * CONV_B + b) * F(lanes)) += acc[a][b];
}

/* Terms [0, terms) in tiles as large as fit. Tile sizes are multiples of `run`, and so are the terms. */
static void F(weight_terms)(int run, int64_t terms, T *gw, const T *g, const T *x, const int64_t *off, int64_t rows, int64_t cols,
                            int64_t row_step)
{
    const int64_t step = CONV_B * F(lanes);
    while (terms > 0) {
        int n;
        if (run == 3) {
            n = terms >= CONV_A ? CONV_A : terms >= 6 ? 6 : 3;
            if (n == CONV_A)
                F(tile_weight)(CONV_A, 3, gw, g, x, off, rows, cols, row_step);
            else if (n == 6)
                F(tile_weight)(6, 3, gw, g, x, off, rows, cols, row_step);
            else
                F(tile_weight)(3, 3, gw, g, x, off, rows, cols, row_step);
        } else {
            n = terms >= CONV_A ? CONV_A : terms >= 4 ? 4 : 1;
            if (n == CONV_A)
                F(tile_weight)(CONV_A, 1, gw, g, x, off, rows, cols, row_step);
            else if (n == 4)
                F(tile_weight)(4, 1, gw, g, x, off, rows, cols, row_step);
            else
                F(tile_weight)(1, 1, gw, g, x, off, rows, cols, row_step);
        }
        terms -= n, off += n, gw += n * step;
    }
}

/* Places an image's planes into the padded frame; the frame's zeroes stay as they are. */
static void F(place)(const conv_frame *f, T *to, const T *x)
{
    for (int64_t c = 0; c < f->channels; c++, to += f->plane)
        for (int64_t ph = 0; ph < f->phases_h; ph++)
            for (int64_t pw = 0; pw < f->phases_w; pw++) {
                T *phase = to + (ph * f->phases_w + pw) * f->phase;
                /* row i of the phase is the image's row i*step + ph - top */
                int64_t i0 = ceil_div(f->top - ph, f->step), i1 = floor_div(f->h - 1 + f->top - ph, f->step);
                int64_t j0 = ceil_div(f->left - pw, f->step), j1 = floor_div(f->w - 1 + f->left - pw, f->step);
                for (int64_t i = i0; i <= i1; i++) {
                    const T *from = x + (c * f->h + i * f->step + ph - f->top) * f->w + pw - f->left;
                    T *row = phase + i * f->row;
                    if (f->step == 1)
                        for (int64_t j = j0; j <= j1; j++)
                            row[j] = from[j];
                    else
                        for (int64_t j = j0; j <= j1; j++)
                            row[j] = from[j * f->step];
                }
            }
}

/* One channel of a tile: virtual rows to the image's rows. */
static void F(spread)(const conv_pass *p, int64_t r0, int64_t rows, T *image, const T *tile, bool add)
{
    const int64_t cols = p->cols, step = p->out_step;
    T *end = image + p->out_h * p->out_w;
    for (int64_t r = 0; r < rows; r++, tile += p->row) {
        T *to = image + ((r0 + r) * step + p->out_top) * p->out_w + p->out_left;
        if (step != 1 || add) {
            for (int64_t c = 0; c < cols; c++)
                to[c * step] = add ? to[c * step] + tile[c] : tile[c];
            continue;
        }
        int64_t c = 0;
        /* Whole vectors may run over into the rows below, which are written after; never past the channel's end. They would
         * destroy the row's neighbours where the pass does not cover whole rows from the top, but with step 1 it does. */
        for (; c < cols && to + c + F(lanes) <= end; c += F(lanes))
            *(F(vecu) *)(to + c) = *(const F(vecu) *)(tile + c);
        for (; c < cols; c++)
            to[c] = tile[c];
    }
}

/* One image through one pass. x: the frame; `tile`: CONV_M * tile_ld elements. */
static void F(image)(const conv_pass *p, T *out, const T *x, const T *w, const T *start, T *tile, bool add)
{
    for (int64_t r0 = 0; r0 < p->rows; r0 += p->chunk) {
        int64_t rows = p->rows - r0 < p->chunk ? p->rows - r0 : p->chunk;
        int64_t vectors = ((rows - 1) * p->row + p->cols + F(lanes) - 1) / F(lanes);
        for (int64_t m = 0; m < p->channels; m += CONV_M) {
            const T *wm = w + m * p->terms, *at = x + p->base + r0 * p->row;
            for (int64_t q = 0; q < vectors;) {
                T *to = tile + q * F(lanes);
                const T *from = at + q * F(lanes);
                int64_t left = vectors - q;
                if (left >= CONV_Q)
                    F(tile_out)(CONV_Q, to, p->tile_ld, wm, start + m, p->off, p->terms, from), q += CONV_Q;
                else if (left == 2)
                    F(tile_out)(2, to, p->tile_ld, wm, start + m, p->off, p->terms, from), q += 2;
                else
                    F(tile_out)(1, to, p->tile_ld, wm, start + m, p->off, p->terms, from), q += 1;
            }
            for (int64_t i = 0; i < CONV_M && m + i < p->channels; i++)
                F(spread)(p, r0, rows, out + (m + i) * p->out_h * p->out_w, tile + i * p->tile_ld, add);
        }
    }
}

/* All images through all passes (one for the forward; stride² phases for the gradient of x). bias may be NULL. Weight of channel m and
 * term k of a pass: w[m * pass->w_channel + pass->w_at[k]]. */
static void F(run)(int64_t n, const conv_frame *f, const conv_pass *pass, int passes, T *out, const T *x, const T *w, const T *bias,
                   bool add)
{
    int threads = conv_threads(n, f, pass, passes);
    int64_t m_up = round_up(pass->channels, CONV_M), packed = 0, tile_ld = 0;
    for (int i = 0; i < passes; i++) {
        packed += m_up * pass[i].terms;
        tile_ld = pass[i].tile_ld > tile_ld ? pass[i].tile_ld : tile_ld;
    }
    int64_t frame = round_up(f->size + F(lanes), 64), tile = round_up(CONV_M * tile_ld, 64);
    T *space = td__alloc(sizeof(T) * (size_t)(round_up(packed + m_up, 64) + threads * (frame + tile)));
    if (!space)
        return;
    T *start = space, *wp = start + m_up, *own = space + round_up(packed + m_up, 64);
    for (int64_t m = 0; m < m_up; m++)
        start[m] = bias && m < pass->channels ? bias[m] : 0;
    T *to = wp;
    for (int i = 0; i < passes; i++)
        for (int64_t m = 0; m < m_up; m += CONV_M)
            for (int64_t k = 0; k < pass[i].terms; k++)
                for (int64_t j = m; j < m + CONV_M; j++)
                    *to++ = j < pass->channels ? w[j * pass[i].w_channel + pass[i].w_at[k]] : 0;

    const int64_t in_size = f->channels * f->h * f->w, out_size = pass->channels * pass->out_h * pass->out_w;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        T *mine = own + conv_thread() * (frame + tile);
        memset(mine, 0, sizeof(T) * (size_t)frame);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            F(place)(f, mine, x + i * in_size);
            const T *wi = wp;
            for (int j = 0; j < passes; j++) {
                F(image)(&pass[j], out + i * out_size, mine, wi, start, mine + frame, add);
                wi += m_up * pass[j].terms;
            }
        }
    }
    td__free(space);
}

/* gout (o, pixels) to strips [strip][pixel][B*lanes], missing channels zero */
static void F(strips)(int64_t o, int64_t pixels, T *to, const T *gout)
{
    enum { width = CONV_B * F(lanes), block = 16 };
    for (int64_t s = 0; s < o; s += width, to += pixels * width)
        for (int64_t p = 0; p < pixels; p += block) {
            int64_t np = pixels - p < block ? pixels - p : block, no = o - s < width ? o - s : width;
            for (int64_t j = 0; j < no; j++) {
                const T *from = gout + (s + j) * pixels + p;
                T *at = to + p * width + j;
                for (int64_t i = 0; i < np; i++)
                    at[i * width] = from[i];
            }
            for (int64_t i = 0; i < np; i++)
                for (int64_t j = no; j < width; j++)
                    to[(p + i) * width + j] = 0;
        }
}

/* gw (o, terms): each element sums over images in order, and within an image over pixels in order, by one thread: the number of threads
 * cannot change it. Threads share the placing of a batch of images, then divide the tiles. */
static void F(run_weight)(int64_t n, const conv_frame *f, int64_t o, int64_t rows, int64_t cols, int64_t terms, const int64_t *off, int run,
                          T *gw, const T *gout, const T *x, bool add)
{
    enum { width = CONV_B * F(lanes), group = 4 * CONV_A };
    const int64_t strips = (o + width - 1) / width, groups = (terms + group - 1) / group, pixels = rows * cols;
    const int64_t frame = round_up(f->size + F(lanes), 64), strip = pixels * width, sum_size = strips * terms * width;
    const int threads = n * pixels * o * terms < CONV_PARALLEL ? 1 : conv_max_threads();
    int64_t batch = CONV_L2 / (int64_t)sizeof(T) / (frame + strips * strip);
    batch = larger(batch, 1) * threads;                  /* every thread has its own second cache, and places at least one image       */
    batch = batch > n ? n : batch;
    T *space = td__alloc(sizeof(T) * (size_t)(round_up(sum_size, 64) + batch * (frame + round_up(strips * strip, 64))));
    if (!space)
        return;
    T *sum = space, *frames = sum + round_up(sum_size, 64), *gs = frames + batch * frame;
    const int64_t gs_size = round_up(strips * strip, 64), in_size = f->channels * f->h * f->w;
    memset(sum, 0, sizeof(T) * (size_t)sum_size);
    memset(frames, 0, sizeof(T) * (size_t)(batch * frame));
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t i0 = 0; i0 < n; i0 += batch) {
        int64_t images = n - i0 < batch ? n - i0 : batch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            F(place)(f, frames + i * frame, x + (i0 + i) * in_size);
            F(strips)(o, pixels, gs + i * gs_size, gout + (i0 + i) * o * pixels);
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < strips * groups; item++) {
            int64_t s = item / groups, k = item % groups * group, nk = terms - k < group ? terms - k : group;
            for (int64_t i = 0; i < images; i++)
                F(weight_terms)(run, nk, sum + (s * terms + k) * width, gs + i * gs_size + s * strip, frames + i * frame, off + k,
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

/* gbias (o) = sum of gout over images and pixels, in double */
static void F(run_bias)(int64_t n, int64_t o, int64_t pixels, T *gbias, const T *gout, bool add)
{
#pragma omp parallel for schedule(static) if (n * o * pixels >= TD_PARALLEL)
    for (int64_t j = 0; j < o; j++) {
        double total = 0;
        for (int64_t i = 0; i < n; i++) {
            const T *g = gout + (i * o + j) * pixels;
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t p = 0; p < pixels; p++)
                sum += (double)g[p];
            total += sum;
        }
        gbias[j] = (T)(add ? (double)gbias[j] + total : total);
    }
}
#undef T
#undef F
