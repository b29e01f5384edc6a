/* tensor/cpu/conv2d_winograd_tiles.h: how a convolution is cut into tiles, and what becomes of its operands: images, gradients and weights to vectors of
 * channels at each point, and sums back to pixels and weights' gradients. For conv2d_winograd.c and conv2d_winograd_strips.h.
 */
enum {
    CACHE = 768 * 1024,              /* bytes of V and M that a core's second cache holds beside the rest                     */
    ROOM = 8 * 1024 * 1024,          /* of V and M, at most, where a chunk grows for U's sake                                */
    FEW = 56,                        /* tiles of a chunk, at least                                                           */
    FEW_SUMMED = 128,                /* the same where whole sums are read and written                                       */
    PART = 128,                      /* channels of a piece of U or of its gradient's sums that the second cache holds        */
    LARGE = 4 * 1024 * 1024,         /* bytes of U from which on it is made in such pieces                                   */
    PARALLEL = 1 << 18,
};

/* One product of images with windows: in (n,c,h,w) with `pad` zeroes around to out (n,o,oh,ow). */
typedef struct {
    int64_t n, c, h, w, o, oh, ow, pad;
    int64_t c_blocks, strips, rows, cols;      /* of LANES channels; of STRIP output channels; tiles                            */
    int64_t images, band;            /* of a chunk: whole images (then band == rows), or rows of tiles of one                 */
} plan;

static plan plan_new(const td_conv2d_shape *s, bool to_x)
{
    plan p = { .n = s->n, .c = s->c, .h = s->h, .w = s->w, .o = s->o, .oh = s->oh, .ow = s->ow, .pad = s->padding };
    if (to_x)
        p = (plan){ .n = s->n, .c = s->o, .h = s->oh, .w = s->ow, .o = s->c, .oh = s->h, .ow = s->w, .pad = 2 - s->padding };
    p.c_blocks = up(p.c, LANES);
    p.strips = up(p.o, STRIP);
    p.rows = up(p.oh, SIDE);
    p.cols = up(p.ow, SIDE);
    return p;
}

/* Cuts the tiles into chunks of about `want`. */
static void plan_cut(plan *p, int64_t want)
{
    p->images = want / (p->rows * p->cols);
    p->images = p->images > p->n ? p->n : p->images;
    p->band = p->rows;
    if (p->images == 0) {
        p->images = 1;
        p->band = up(p->rows, up(p->rows, want >= p->cols ? want / p->cols : 1));
    }
}

/* About `few` tiles or more: where V and M still fit the cache, or as many as make streaming U, which every chunk does, cheap beside them. */
static int64_t tiles_wanted(const plan *p, int64_t few)
{
    const int64_t in = p->c_blocks * LANES, out = p->strips * STRIP, per_tile = POINTS * (in + out) * (int64_t)sizeof(float);
    return larger(larger(few, CACHE / per_tile), smaller(2 * in * out / (in + out), ROOM / per_tile));
}

static int64_t plan_tiles(const plan *p)
{
    return p->images * p->band * p->cols;
}

static int64_t plan_chunks(const plan *p)
{
    return up(p->n, p->images) * up(p->rows, p->band);
}

typedef struct { int64_t image, images, row, rows, tiles; } chunk;

static chunk chunk_at(const plan *p, int64_t i)
{
    const int64_t bands = up(p->rows, p->band);
    chunk k = { .image = i / bands * p->images, .row = i % bands * p->band };
    k.images = p->n - k.image < p->images ? p->n - k.image : p->images;
    k.rows = p->rows - k.row < p->band ? p->rows - k.row : p->band;
    k.tiles = k.images * k.rows * p->cols;
    return k;
}

/* ---- tiles of an operand ---- */

/* Elements between two points of V, M or a gradient: one vector more, lest all lie in the same sets of a cache. */
static int64_t point_size(int64_t blocks, int64_t tiles)
{
    return (blocks * tiles + 1) * LANES;
}

static void image_tiles(const plan *p, const chunk *k, int64_t image, int64_t block, float *v, float *frame, const float *x)
{
    const int64_t frame_cols = p->cols * SIDE + 2, apart = point_size(p->c_blocks, k->tiles);
    float *to = v + (block * k->tiles + image * k->rows * p->cols) * LANES;
    place(frame, frame_cols, p->pad, x + ((k->image + image) * p->c + block * LANES) * p->h * p->w, p->c - block * LANES, p->h, p->w, k->row * SIDE - p->pad,
          k->rows * SIDE + 2);
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t c = 0; c < p->cols; c++, to += LANES)
            image_tile(to, apart, frame + (r * SIDE * frame_cols + c * SIDE) * LANES, frame_cols * LANES, LANES);
}

static void gradient_tiles(const plan *p, const chunk *k, int64_t image, int64_t block, float *v, float *frame, const float *g)
{
    const int64_t frame_cols = p->cols * SIDE, apart = point_size(p->strips * NB, k->tiles);
    float *to = v + (block * k->tiles + image * k->rows * p->cols) * LANES;
    if (block * LANES >= p->o)       /* the last strip's blocks beyond the channels                                          */
        memset(frame, 0, sizeof(float) * (size_t)(k->rows * SIDE * frame_cols * LANES));
    else
        place(frame, frame_cols, 0, g + ((k->image + image) * p->o + block * LANES) * p->oh * p->ow, p->o - block * LANES, p->oh, p->ow, k->row * SIDE,
              k->rows * SIDE);
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t c = 0; c < p->cols; c++, to += LANES)
            gradient_tile(to, apart, frame + (r * SIDE * frame_cols + c * SIDE) * LANES, frame_cols * LANES, LANES);
}

/* Products of a chunk and one block, points `apart`, to the pixels of one image; `line`: the band's pixels, [pixel][LANES] */
static void output_tiles(const plan *p, const chunk *k, int64_t image, int64_t block, float *out,
                         const float *products, int64_t apart, float *line, const float *bias, bool add)
{
    const int64_t top = k->row * SIDE, rows = smaller(k->rows * SIDE, p->oh - top), pixels = rows * p->ow;
    const float *from = products + image * k->rows * p->cols * LANES;
    for (int64_t r = 0; r < k->rows * SIDE; r += SIDE)
        for (int64_t c = 0; c < p->cols * SIDE; c += SIDE, from += LANES) {
            vec tile[SIDE * SIDE];
            output_tile((float *)tile, LANES, from, ALONG * apart, apart);
            for (int64_t i = 0; i < SIDE && r + i < rows; i++)
                for (int64_t j = 0; j < SIDE && c + j < p->ow; j++)
                    *(vec_at *)(line + ((r + i) * p->ow + c + j) * LANES) = tile[i * SIDE + j];
        }
    float *to = out + ((k->image + image) * p->o + block * LANES) * p->oh * p->ow + top * p->ow;
    for (int64_t q = 0; q < pixels; q += LANES) {
        vec v[LANES];
        for (int j = 0; j < LANES; j++)
            v[j] = *(const vec_at *)(line + (q + j) * LANES);
        store_turned(to, p->oh * p->ow, p->o - block * LANES, q, pixels, v, bias ? bias + block * LANES : NULL, add);
    }
}

/* ---- weights ---- */

static int64_t weights_size(const plan *p)   /* of U at one point                                                               */
{
    return (p->strips * p->c_blocks * LANES + 1) * STRIP;
}

/* The weights that one block of output channels shares with inputs c0 … c1, [channel][3x3][LANES]: for the forward w (o,c,3,3) as it lies, for the
 * gradient of x with both channels exchanged and the window turned round (`to_x`: then the rows of w are this plan's inputs). */
static void weights_line(const plan *p, bool to_x, int64_t block, int64_t c0, int64_t c1, float *line, const float *w)
{
    const int64_t rows = smaller(p->o - block * LANES, LANES);
    if (!to_x) {
        for (int64_t e = c0 * 9; e < c1 * 9; e += LANES, line += LANES * LANES) {
            vec v[LANES];
            load_turned(v, w + block * LANES * p->c * 9, p->c * 9, rows, e, p->c * 9);
            for (int64_t j = 0; j < LANES && e + j < c1 * 9; j++)
                *(vec_at *)(line + j * LANES) = v[j];
        }
        return;
    }
    float few[LANES * 9 + LANES] = { 0 };
    for (int64_t c = c0; c < c1; c++) {
        memcpy(few, w + (c * p->o + block * LANES) * 9, sizeof(float) * (size_t)(rows * 9));
        for (int e = 0; e < 9; e += LANES) {
            vec v[LANES];
            load_turned(v, few, 9, rows, e, e + LANES);
            for (int j = 0; j < LANES && e + j < 9; j++)
                *(vec_at *)(line + ((c - c0) * 9 + 8 - e - j) * LANES) = v[j];
        }
    }
}

/* One block of output channels and inputs c0 … c1, zeroes beyond the last, to u: [point, `apart`][channel][STRIP] */
static void weights(const plan *p, bool to_x, int64_t block, int64_t c0, int64_t c1, float *u, int64_t apart,
                    float *line, const float *w)
{
    const int64_t last = block * LANES < p->o ? smaller(c1, p->c) : c0;
    float *to = u + block % NB * LANES;
    if (last > c0)
        weights_line(p, to_x, block, c0, last, line, w);
    for (int64_t c = c0; c < last; c++)
        weight_tile(to + (c - c0) * STRIP, apart, line + (c - c0) * 9 * LANES, 3 * LANES, LANES);
    for (int64_t i = 0; i < POINTS; i++)
        for (int64_t c = last; c < c1; c++)
            *(vec_at *)(to + i * apart + (c - c0) * STRIP) = (vec){ 0 };
}

/* Sums, as u above, to the gradients of one block's weights (o,c,3,3) from inputs c0 … c1 */
static void weights_gradient(const plan *p, int64_t block, int64_t c0, int64_t c1, float *gw,
                             const float *sums, int64_t apart, float *line, bool add)
{
    const float *from = sums + block % NB * LANES;
    const int64_t count = smaller(c1, p->c) - c0;
    for (int64_t c = 0; c < count; c++)
        weight_gradient_tile(line + c * 9 * LANES, LANES, from + c * STRIP, ALONG * apart, apart);
    for (int64_t e = 0; e < count * 9; e += LANES) {
        vec v[LANES];
        for (int j = 0; j < LANES; j++)
            v[j] = *(const vec_at *)(line + (e + j) * LANES);
        store_turned(gw + (block * LANES * p->c + c0) * 9, p->c * 9, p->o - block * LANES, e, count * 9, v, NULL, add);
    }
}

/* ---- room ---- */

static int64_t frame_size(const plan *p)     /* enough for a band's pixels, with or without a border                            */
{
    return ((p->band * SIDE + 2) * (p->cols * SIDE + 2) + LANES) * LANES;
}

static int64_t line_size(const plan *p, int64_t channels)    /* the same, and for a block's weights from so many channels       */
{
    return larger(frame_size(p), (channels * 9 + LANES) * LANES);
}
