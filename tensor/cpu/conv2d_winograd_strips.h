/* tensor/cpu/conv2d_winograd_strips.h: the order of work where the weights outweigh the images (256 channels of 7x7, 512 of 4x4): a strip of output channels
 * after the other. conv2d_winograd.c includes it.
 *
 * All tiles of a large chunk are turned first, once for all. Then a unit of work is a strip: its U is made PART input channels at a time, a piece that
 * stays in the second cache, is multiplied with the tiles and forgotten. U as a whole, 4 times the weights, never lies in memory. The weights' gradient is the
 * reverse: a piece of the sums becomes gradients while it lies in the cache; further chunks add theirs. A result's sum is carried on from piece
 * to piece, so it has the bits of the other order, and which order is taken may depend on threads. The weights' gradient's may not.
 */
static bool by_strips(const plan *p)
{
    return POINTS * p->c * p->o * (int64_t)sizeof(float) >= LARGE;
}

static int64_t parts_of(const plan *p)
{
    return up(p->c_blocks * LANES, PART);
}

/* elements between two points of a piece */
static int64_t part_point(void)
{
    return (PART * NB + 1) * LANES;
}

/* A strip's products with inputs of blocks b0 … b1, from U made here, added to those of the blocks before */
static void strip_part(const plan *p, bool to_x, const chunk *k, int64_t strip, int64_t b0, int64_t b1, float *m, float *u, const float *v, float *line,
                       const float *w)
{
    const int64_t v_point = point_size(p->c_blocks, k->tiles), m_point = point_size(NB, k->tiles);
    for (int64_t block = strip * NB; block < (strip + 1) * NB; block++)
        weights(p, to_x, block, b0 * LANES, b1 * LANES, u, part_point(), line, w);
    for (int64_t point = 0; point < POINTS; point++)
        products(m + point * m_point, u + point * part_point(), v + point * v_point + b0 * k->tiles * LANES, k->tiles, b1 - b0, b0 > 0);
}

static void run_strips(const plan *p, bool to_x, int threads, float *out, const float *x, const float *w, const float *bias, bool add)
{
    const int64_t tiles = plan_tiles(p), v_size = POINTS * point_size(p->c_blocks, tiles), m_size = POINTS * point_size(NB, tiles),
                  u_size = POINTS * part_point(), frame_room = frame_size(p), own = m_size + u_size + frame_room + line_size(p, PART), chunks = plan_chunks(p),
                  parts = parts_of(p);
    float *v = td__alloc(sizeof(float) * (size_t)(v_size + threads * own));
    if (!v)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *m = v + v_size + omp_get_thread_num() % threads * own, *u = m + m_size, *frame = u + u_size, *mine = frame + frame_room;
        memset(frame, 0, sizeof(float) * (size_t)frame_room);
        for (int64_t i = 0; i < chunks; i++) {
            const chunk k = chunk_at(p, i);
#pragma omp for schedule(static)
            for (int64_t item = 0; item < k.images * p->c_blocks; item++)
                image_tiles(p, &k, item / p->c_blocks, item % p->c_blocks, v, frame, x);
#pragma omp for schedule(static)
            for (int64_t strip = 0; strip < p->strips; strip++) {
                for (int64_t part = 0; part < parts; part++)
                    strip_part(p, to_x, &k, strip, p->c_blocks * part / parts, p->c_blocks * (part + 1) / parts, m, u, v, mine, w);
                for (int64_t item = 0; item < k.images * NB; item++) {
                    const int64_t block = strip * NB + item % NB;
                    if (block * LANES < p->o)
                        output_tiles(p, &k, item / NB, block, out, m + item % NB * k.tiles * LANES, point_size(NB, k.tiles), mine, bias, add);
                }
            }
        }
    }
    td__free(v);
}

/* A chunk's sums of a strip and the inputs of blocks b0 … b1, and with them the gradients of those weights */
static void strip_gradient(const plan *p, const chunk *k, int64_t strip, int64_t b0, int64_t b1, float *gw, float *sums, const float *v, const float *gv,
                           float *line, bool add)
{
    const int64_t v_point = point_size(p->c_blocks, k->tiles), g_point = point_size(p->strips * NB, k->tiles);
    for (int64_t point = 0; point < POINTS; point++)
        for (int64_t block = b0; block < b1; block++)
            summed(sums + point * part_point() + (block - b0) * LANES * STRIP, v + point * v_point + block * k->tiles * LANES,
                   gv + point * g_point + strip * NB * k->tiles * LANES, k->tiles * LANES, k->tiles, false);
    for (int64_t block = strip * NB; block < (strip + 1) * NB && block * LANES < p->o; block++)
        weights_gradient(p, block, b0 * LANES, b1 * LANES, gw, sums, part_point(), line, add);
}

static void run_weights_strips(const plan *p, int threads, float *gw, const float *g, const float *x, bool add)
{
    const int64_t tiles = plan_tiles(p), blocks = p->strips * NB, v_size = POINTS * point_size(p->c_blocks, tiles), g_size = POINTS * point_size(blocks, tiles),
                  sums_size = POINTS * part_point(), frame_room = frame_size(p), own = sums_size + 2 * frame_room + line_size(p, PART), chunks = plan_chunks(p),
                  parts = parts_of(p);
    float *v = td__alloc(sizeof(float) * (size_t)(v_size + g_size + threads * own)), *gv = v + v_size;
    if (!v)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *sums = gv + g_size + omp_get_thread_num() % threads * own, *frame = sums + sums_size, *other = frame + frame_room, *mine = other + frame_room;
        memset(frame, 0, sizeof(float) * (size_t)(2 * frame_room));   /* of the image, of the gradient                           */
        for (int64_t i = 0; i < chunks; i++) {
            const chunk k = chunk_at(p, i);
#pragma omp for schedule(static)
            for (int64_t item = 0; item < k.images * (p->c_blocks + blocks); item++) {
                const int64_t image = item / (p->c_blocks + blocks), block = item % (p->c_blocks + blocks);
                if (block < p->c_blocks)
                    image_tiles(p, &k, image, block, v, frame, x);
                else
                    gradient_tiles(p, &k, image, block - p->c_blocks, gv, other, g);
            }
#pragma omp for schedule(static)
            for (int64_t item = 0; item < p->strips * parts; item++) {
                const int64_t part = item % parts;
                strip_gradient(p, &k, item / parts, p->c_blocks * part / parts, p->c_blocks * (part + 1) / parts, gw, sums, v, gv, mine, add || i > 0);
            }
        }
    }
    td__free(v);
}
