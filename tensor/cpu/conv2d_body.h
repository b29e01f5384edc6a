/* tensor/cpu/conv2d_body.h: the direct convolution for one element type T; conv2d.c includes it once for float and once for double.
 *
 * The forward and the gradient of x keep their accumulators in registers through the whole sum and read the image in place, so there is no
 * column buffer. tile_out: m channels by up to Q vectors of neighbouring virtual positions (see conv2d.c). Per term k the vectors at
 * x + off[k] are loaded unaligned and multiplied by m broadcast weights, which lie packed as [channel tile][k][m]. Whatever the tile, an
 * element's sum is the same: from its start, term by term.
 *
 * Expects T, the integer I of its size, F(name), CONV_BYTES (width of a vector) and the tile sizes; conv2d_weight.h follows and undefines T, I
 * and F.
 */
enum { F(lanes) = CONV_BYTES / (int)sizeof(T) };
typedef T F(vec) __attribute__((vector_size(CONV_BYTES)));
typedef T F(vecu) __attribute__((vector_size(CONV_BYTES), aligned(sizeof(T)), may_alias));
typedef I F(mask) __attribute__((vector_size(CONV_BYTES)));

/* out[m][0 … nq*lanes) = start[m] + sum over k of w[k][m] * x[off[k] …]; nm and nq are constants after inlining */
static inline __attribute__((always_inline)) void F(tile_out)(const int nm, const int nq, T *out, int64_t ld, const T *w, const T *start,
                                                              const int64_t *off, int64_t terms, const T *x)
{
    F(vec) acc[CONV_M][CONV_Q_MOST];
#pragma GCC unroll 16
    for (int m = 0; m < nm; m++)
#pragma GCC unroll 16
        for (int q = 0; q < nq; q++)
            acc[m][q] = start[m] - (F(vec)){ 0 };
    for (int64_t k = 0; k < terms; k++, w += nm) {
        const T *xk = x + off[k];
        F(vec) b[CONV_Q_MOST];
#pragma GCC unroll 16
        for (int q = 0; q < nq; q++)
            b[q] = *(const F(vecu) *)(xk + q * F(lanes));
#pragma GCC unroll 16
        for (int m = 0; m < nm; m++)
#pragma GCC unroll 16
            for (int q = 0; q < nq; q++)
                acc[m][q] += b[q] * w[m];
    }
#pragma GCC unroll 16
    for (int m = 0; m < nm; m++)
#pragma GCC unroll 16
        for (int q = 0; q < nq; q++)
            *(F(vecu) *)(out + m * ld + q * F(lanes)) = acc[m][q];
}

/* n elements, where short rows must not cost a loop each: whole vectors, the last one over the one before; below that halves and quarters */
static inline __attribute__((always_inline)) void F(copy_row)(T *to, const T *from, int64_t n)
{
    enum { whole = F(lanes), half = whole / 2, quarter = whole / 4 };
    if (n >= whole) {
        for (int64_t i = 0; i + whole <= n; i += whole)
            *(F(vecu) *)(to + i) = *(const F(vecu) *)(from + i);
        *(F(vecu) *)(to + n - whole) = *(const F(vecu) *)(from + n - whole);
    } else if (n >= half) {
        memcpy(to, from, sizeof(T) * half);
        memcpy(to + n - half, from + n - half, sizeof(T) * half);
    } else if (quarter > 0 && n >= quarter) {
        memcpy(to, from, sizeof(T) * quarter);
        memcpy(to + n - quarter, from + n - quarter, sizeof(T) * quarter);
    } else {
        for (int64_t i = 0; i < n; i++)
            to[i] = from[i];
    }
}

/* to[i] = from[i * step] for 0 <= i < n. Step 2 takes four at a time from two vectors of four, which must not reach beyond the last one. */
static inline __attribute__((always_inline)) void F(pick_row)(T *to, const T *from, int64_t n, int64_t step)
{
    typedef T four __attribute__((vector_size(4 * sizeof(T))));
    typedef T four_at __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
    typedef I places __attribute__((vector_size(4 * sizeof(T))));
    int64_t i = 0;
    for (; step == 2 && i + 4 < n; i += 4) {
        four a = *(const four_at *)(from + 2 * i), b = *(const four_at *)(from + 2 * i + 4);
        *(four_at *)(to + i) = __builtin_shuffle(a, b, (places){ 0, 2, 4, 6 });
    }
    for (; i < n; i++)
        to[i] = from[i * step];
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
                        F(copy_row)(row + j0, from + j0, j1 - j0 + 1);
                    else
                        F(pick_row)(row + j0, from + j0 * f->step, j1 - j0 + 1, f->step);
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
        F(copy_row)(to + c, tile + c, cols - c);
    }
}

/* A tile's channels over `vectors` vectors; nm and most are constants after inlining */
static inline __attribute__((always_inline)) void F(line)(const int nm, const int most, const conv_pass *p, int64_t vectors, T *tile,
                                                          const T *w, const T *start, const T *x)
{
    for (int64_t q = 0; q < vectors;) {
        T *to = tile + q * F(lanes);
        const T *from = x + q * F(lanes);
        int64_t left = vectors - q;
        if (left >= most && !(most == 3 && left == 4))       /* 2 and 2 keep the multipliers busier than 3 and 1 */
            F(tile_out)(nm, most, to, p->tile_ld, w, start, p->off, p->terms, from), q += most;
        else if (most > 4 && left >= 4)
            F(tile_out)(nm, 4, to, p->tile_ld, w, start, p->off, p->terms, from), q += 4;
        else if (left >= 2)
            F(tile_out)(nm, 2, to, p->tile_ld, w, start, p->off, p->terms, from), q += 2;
        else
            F(tile_out)(nm, 1, to, p->tile_ld, w, start, p->off, p->terms, from), q += 1;
    }
}

/* One image through one pass. x: the frame; `tile`: p->m * tile_ld elements. */
static void F(image)(const conv_pass *p, T *out, const T *x, const T *w, const T *start, T *tile, bool add)
{
    for (int64_t r0 = 0; r0 < p->rows; r0 += p->chunk) {
        int64_t rows = p->rows - r0 < p->chunk ? p->rows - r0 : p->chunk;
        int64_t vectors = ((rows - 1) * p->row + p->cols + F(lanes) - 1) / F(lanes);
        const T *at = x + p->base + r0 * p->row;
        for (int64_t m = 0; m < p->channels; m += p->m) {
            const T *wm = w + m * p->terms;
            if (p->m == CONV_M)
                F(line)(CONV_M, CONV_Q, p, vectors, tile, wm, start + m, at);
            else if (p->m == 4)
                F(line)(4, CONV_Q4, p, vectors, tile, wm, start + m, at);
            else if (p->m == 2)
                F(line)(2, CONV_Q2, p, vectors, tile, wm, start + m, at);
            else
                F(line)(1, CONV_Q1, p, vectors, tile, wm, start + m, at);
            for (int64_t i = 0; i < p->m && m + i < p->channels; i++)
                F(spread)(p, r0, rows, out + (m + i) * p->out_h * p->out_w, tile + i * p->tile_ld, add);
        }
    }
}

/* All groups of all images through all passes (one for the forward; stride² phases for the gradient of x). bias may be NULL. Weight of
 * channel m and term k of a pass in group g: w[g * w_group + m * pass->w_channel + pass->w_at[k]]. */
static void F(run)(int64_t n, int64_t groups, const conv_frame *f, const conv_pass *pass, int passes, T *out, const T *x, const T *w,
                   int64_t w_group, const T *bias, bool add)
{
    int threads = conv_threads(n * groups, pass, passes);
    const int64_t channels = pass->channels, wide = pass->m, m_up = round_up(channels, wide);
    int64_t packed = 0, tile_ld = 0;
    for (int i = 0; i < passes; i++) {
        packed += m_up * pass[i].terms;
        tile_ld = pass[i].tile_ld > tile_ld ? pass[i].tile_ld : tile_ld;
    }
    int64_t frame = round_up(f->size + F(lanes), 64), tile = round_up(wide * tile_ld, 64), shared = round_up(groups * (packed + m_up), 64);
    T *space = td__alloc(sizeof(T) * (size_t)(shared + threads * (frame + tile)));
    if (!space)
        return;
    T *start = space, *wp = start + groups * m_up, *own = space + shared, *to = wp;
    for (int64_t g = 0; g < groups; g++, w += w_group) {
        for (int64_t m = 0; m < m_up; m++)
            start[g * m_up + m] = bias && m < channels ? bias[g * channels + m] : 0;
        for (int i = 0; i < passes; i++)
            for (int64_t m = 0; m < m_up; m += wide)
                for (int64_t k = 0; k < pass[i].terms; k++)
                    for (int64_t j = m; j < m + wide; j++)
                        *to++ = j < channels ? w[j * pass[i].w_channel + pass[i].w_at[k]] : 0;
    }

    const int64_t in_size = f->channels * f->h * f->w, out_size = channels * pass->out_h * pass->out_w;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        T *mine = own + conv_thread() * (frame + tile);
        memset(mine, 0, sizeof(T) * (size_t)frame);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * groups; i++) {
            F(place)(f, mine, x + i * in_size);
            const T *wi = wp + i % groups * packed;
            for (int j = 0; j < passes; j++) {
                F(image)(&pass[j], out + i * out_size, mine, wi, start + i % groups * m_up, mine + frame, add);
                wi += m_up * pass[j].terms;
            }
        }
    }
    td__free(space);
}
