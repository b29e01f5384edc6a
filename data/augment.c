/* data/augment.c: what is done to a picture between reading it and handing it out. What happens to a sample depends on
 * the seed, the epoch and the sample's number, so that N parts with any threads see what one part sees.
 */
#include "data_impl.h"
#include <math.h>
#include <string.h>

/* ---- the options -------------------------------------------------------------------------------------------------- */

bool td__augment_wanted(const td_augment *a)
{
    return a->crop_padding || a->flip || a->mean || a->std;
}

int td__augment_check(const td_dataset *data, const td_augment *a)
{
    char text[128];
    const td_field *f = &data->field[0];
    if (a->crop_padding < 0)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_new: augment.crop_padding is %d, expected 0 or more", a->crop_padding);
    if (!td__augment_wanted(a))
        return 0;
    if (f->shape.ndim != 3)
        return td__fail(TD_ERR_SHAPE, "td_loader_new: augment works on pictures (C,H,W), field 0 of the data set has shape %s",
                        td__shape_text(f->shape, text));
    if (f->dtype != TD_F32)
        return td__fail(TD_ERR_DTYPE, "td_loader_new: augment works on f32, field 0 of the data set is %s", td_dtype_name(f->dtype));
    for (int64_t c = 0; c < f->shape.dim[0]; c++) {
        if (a->mean && !isfinite(a->mean[c]))
            return td__fail(TD_ERR_ARGUMENT, "td_loader_new: augment.mean[%lld] is %g, expected a finite number", (long long)c, a->mean[c]);
        if (a->std && (!(a->std[c] > 0) || !isfinite(a->std[c])))
            return td__fail(TD_ERR_ARGUMENT, "td_loader_new: augment.std[%lld] is %g, expected a number above 0", (long long)c, a->std[c]);
    }
    return 0;
}

static double *copy_numbers(const double *from, int64_t n)
{
    double *to = from ? td__alloc((size_t)n * sizeof *to) : NULL;
    return to && n > 0 ? memcpy(to, from, (size_t)n * sizeof *to) : to;
}

/* The caller's mean and std may be gone when a thread uses them. */
bool td__augment_copy(td_augment *to, const td_augment *from, const td_dataset *data)
{
    *to = *from;
    to->mean = copy_numbers(from->mean, data->field[0].shape.dim[0]);
    to->std = copy_numbers(from->std, data->field[0].shape.dim[0]);
    return (to->mean || !from->mean) && (to->std || !from->std);
}

void td__augment_drop(td_augment *a)
{
    td__free((double *)a->mean);
    td__free((double *)a->std);
}

/* ---- one picture -------------------------------------------------------------------------------------------------- */

/* 0 … n-1 from 32 random bits, by a product (Lemire 2019) without rejection: n is small, the bias below n / 2^32. */
static int64_t below(uint64_t n, uint32_t bits)
{
    return (int64_t)((uint64_t)bits * n >> 32);
}

/* One block of bits: number 0 turns the picture over, 1 and 2 place the window. The key differs from those of td_rand and of the epoch's
 * order with the same seed. */
td__view td__augment_view(const td_augment *a, uint64_t seed, int64_t epoch, int64_t sample)
{
    td_philox r = td__philox(seed ^ 0x4155474D454E5453u, (uint64_t)epoch, (uint64_t)sample);
    uint64_t places = 2 * (uint64_t)a->crop_padding + 1;
    return (td__view){ .top = below(places, r.v[1]) - a->crop_padding, .left = below(places, r.v[2]) - a->crop_padding,
                       .mirrored = a->flip && r.v[0] >> 31 };
}

static void normalise(float *x, int64_t n, double mean, double std)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((x[i] - mean) / std);
}

/* One row: its part of the window that lies in the picture, zeros around it; then turned over in place. */
static void place_row(const float *from, float *to, int64_t w, td__view view)
{
    int64_t left = view.left, skip = left < 0 ? -left : 0, n = w - (left < 0 ? -left : left);
    if (n <= 0) {
        memset(to, 0, (size_t)w * sizeof *to);
        return;
    }
    memset(to, 0, (size_t)skip * sizeof *to);
    memcpy(to + skip, from + (left > 0 ? left : 0), (size_t)n * sizeof *to);
    memset(to + skip + n, 0, (size_t)(w - skip - n) * sizeof *to);
    for (int64_t i = 0; view.mirrored && i < w / 2; i++) {
        float moved = to[i];
        to[i] = to[w - 1 - i];
        to[w - 1 - i] = moved;
    }
}

void td__augment_apply(const td_augment *a, td__view view, int64_t c, int64_t h, int64_t w, const float *from, float *to)
{
    for (int64_t i = 0; i < c; i++, from += h * w, to += h * w) {
        for (int64_t y = 0; y < h; y++) {
            int64_t source = y + view.top;
            if (source < 0 || source >= h)
                memset(to + y * w, 0, (size_t)w * sizeof *to);
            else
                place_row(from + source * w, to + y * w, w, view);
        }
        if (a->mean || a->std)
            normalise(to, h * w, a->mean ? a->mean[i] : 0, a->std ? a->std[i] : 1);
    }
}
