/* tests/cuda/conv_cases.c: see conv_cases.h. */
#include "conv_cases.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* numbers that every dtype holds exactly: quarters in [-2, 2] */
static double number(int64_t i, int seed)
{
    return (double)((i * 2654435761u + (uint32_t)seed * 40503u) % 17) / 4 - 2;
}

/* Where element i of (a,b,c,d) lies, when b is the last dimension in memory. */
static int64_t last(int64_t i, const int64_t size[4])
{
    const int64_t d = i % size[3], c = i / size[3] % size[2], b = i / (size[3] * size[2]) % size[1], a = i / (size[3] * size[2] * size[1]);
    return ((a * size[2] + c) * size[3] + d) * size[1] + b;
}

typedef struct { double *ideal; char *bytes; void *there; int64_t n, size[4]; } operand;

static int64_t at(const operand *o, int64_t i, bool nhwc)
{
    return nhwc && o->size[2] ? last(i, o->size) : i;
}

/* The values in dtype t, as they are to lie, in the room from *used on. size[2] 0: a vector of size[0]. */
static operand make(const int64_t size[4], td_dtype t, bool nhwc, int seed, int offset, char *room, size_t *used,
                    void (*move)(void *to, const void *from, size_t bytes, bool to_device))
{
    operand o = { .n = size[2] ? size[0] * size[1] * size[2] * size[3] : size[0] };
    memcpy(o.size, size, sizeof o.size);
    o.ideal = malloc((size_t)o.n * sizeof *o.ideal);
    o.bytes = malloc((size_t)o.n * td_dtype_size(t));
    o.there = room + *used + (size_t)offset * td_dtype_size(t);
    *used += ((size_t)(o.n + offset) * td_dtype_size(t) + 255) / 256 * 256;
    for (int64_t i = 0; i < o.n; i++) {
        o.ideal[i] = number(i, seed);
        td__element_put(t, o.bytes + (size_t)at(&o, i, nhwc) * td_dtype_size(t), o.ideal[i]);
    }
    move(o.there, o.bytes, (size_t)o.n * td_dtype_size(t), true);
    return o;
}

/* Is what lies there the reference, within `terms` sums of numbers up to 4 and one rounding? */
static int wrong(const char *what, const conv_case *c, operand *o, const double *reference, td_dtype t, bool nhwc, double terms,
                 void (*move)(void *to, const void *from, size_t bytes, bool to_device))
{
    const double eps = t == TD_F64 ? 0x1p-52 : t == TD_F32 ? 0x1p-23 : t == TD_F16 ? 0x1p-11 : 0x1p-8, sums = t == TD_F64 ? 0x1p-52 : 0x1p-23;
    move(o->bytes, o->there, (size_t)o->n * td_dtype_size(t), false);
    for (int64_t i = 0; i < o->n; i++) {
        const double got = td__element_get(t, o->bytes + (size_t)at(o, i, nhwc) * td_dtype_size(t));
        if (fabs(got - reference[i]) <= eps * fabs(reference[i]) * 2 + sums * 4 * sqrt(terms) * 4)
            continue;
        printf("%s, %s, %s, %s: element %lld is %.9g, expected %.9g\n", c->name, what, td_dtype_name(t), nhwc ? "nhwc" : "nchw", (long long)i, got, reference[i]);
        return 1;
    }
    return 0;
}

int conv_check(const conv_case *c, td_dtype t, bool nhwc, bool add, int offset, const td_kernels *k, void *room,
               void (*move)(void *to, const void *from, size_t bytes, bool to_device))
{
    td_conv2d_shape s = c->s, plain = c->s;
    const td_kernels *cpu = td__cpu_kernels();
    size_t used = 0;
    int bad = 0;
    s.nhwc = nhwc;
    const int64_t xs[4] = { s.n, s.c, s.h, s.w }, ys[4] = { s.n, s.o, s.oh, s.ow }, ws[4] = { s.o, s.c / s.groups, s.kh, s.kw }, bs[4] = { s.o };
    operand x = make(xs, t, nhwc, 1, offset, room, &used, move), w = make(ws, t, nhwc, 2, offset, room, &used, move);
    operand g = make(ys, t, nhwc, 3, offset, room, &used, move), b = make(bs, t, nhwc, 4, offset, room, &used, move);
    operand out = make(ys, t, nhwc, 5, offset, room, &used, move), gx = make(xs, t, nhwc, 6, offset, room, &used, move);
    operand gw = make(ws, t, nhwc, 7, offset, room, &used, move), gb = make(bs, t, nhwc, 8, offset, room, &used, move);
    if (used > CONV_ROOM) {
        printf("%s: %zu bytes are too many\n", c->name, used);
        return 1;
    }
    k->conv2d(t, &s, out.there, x.there, w.there, add ? NULL : b.there, add);
    k->conv2d_grad_x(t, &s, gx.there, g.there, w.there, NULL, add);
    k->conv2d_grad_w(t, &s, gw.there, gb.there, g.there, x.there, add, add);
    cpu->conv2d(TD_F64, &plain, out.ideal, x.ideal, w.ideal, add ? NULL : b.ideal, add);
    cpu->conv2d_grad_x(TD_F64, &plain, gx.ideal, g.ideal, w.ideal, NULL, add);
    cpu->conv2d_grad_w(TD_F64, &plain, gw.ideal, gb.ideal, g.ideal, x.ideal, add, add);
    bad += wrong("forward", c, &out, out.ideal, t, nhwc, (double)(ws[1] * s.kh * s.kw), move);
    bad += wrong("gradient of x", c, &gx, gx.ideal, t, nhwc, (double)(s.o / s.groups * s.kh * s.kw), move);
    bad += wrong("gradient of w", c, &gw, gw.ideal, t, nhwc, (double)(s.n * s.oh * s.ow), move);
    bad += wrong("gradient of b", c, &gb, gb.ideal, t, nhwc, (double)(s.n * s.oh * s.ow), move);
    operand *const all[] = { &x, &w, &g, &b, &out, &gx, &gw, &gb };
    for (size_t i = 0; i < TD_COUNT(all); i++) {
        free(all[i]->ideal);
        free(all[i]->bytes);
    }
    return bad;
}
