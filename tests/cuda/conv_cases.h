/* tests/cuda/conv_cases.h: convolutions that every way of computing them on a GPU is held to: cuDNN's (a fake's, or the real one's) and our own
 * kernels, forward and both gradients, in both orders in memory, written and added, against the CPU's kernels in double precision.
 */
#ifndef TD_TEST_CONV_CASES_H
#define TD_TEST_CONV_CASES_H
#include <tensor_impl.h>

typedef struct { const char *name; td_conv2d_shape s; } conv_case;
static const conv_case conv_cases[] = {
#define CASE(text, n_, c_, h_, w_, o_, kh_, kw_, st, pa, di, gr)                                             \
    { text, { .n = n_, .c = c_, .h = h_, .w = w_, .o = o_, .kh = kh_, .kw = kw_, .oh = ((h_) + 2 * (pa) - (di) * ((kh_) - 1) - 1) / (st) + 1, \
              .ow = ((w_) + 2 * (pa) - (di) * ((kw_) - 1) - 1) / (st) + 1, .stride = st, .padding = pa, .dilation = di, .groups = gr } }
    CASE("3x3, packs of channels", 2, 16, 9, 7, 24, 3, 3, 1, 1, 1, 1), CASE("1x1", 3, 8, 6, 5, 16, 1, 1, 1, 0, 1, 1),
    CASE("1x1, stride 2", 2, 16, 7, 8, 8, 1, 1, 2, 0, 1, 1), CASE("the 7x7 stem", 1, 3, 21, 22, 8, 7, 7, 2, 3, 1, 1),
    CASE("odd sizes", 2, 5, 7, 11, 3, 3, 2, 2, 1, 1, 1), CASE("dilation 2", 1, 4, 9, 9, 6, 3, 3, 1, 2, 2, 1), CASE("2 groups", 2, 8, 6, 6, 6, 3, 3, 1, 1, 1, 2),
    CASE("depthwise", 2, 6, 7, 7, 6, 3, 3, 1, 1, 1, 6), CASE("one pixel, one channel", 2, 1, 3, 3, 1, 3, 3, 1, 0, 1, 1),
    CASE("dilation 5", 1, 3, 13, 12, 4, 3, 3, 1, 5, 5, 1),
#undef CASE
};

/* Returns how many of the cases' results are wrong, and prints them. k: the device's kernels; room: device memory of at least CONV_ROOM bytes; move:
 * to (or from) it. offset: elements by which every operand is off its alignment. */
enum { CONV_ROOM = 1 << 20 };
int conv_check(const conv_case *c, td_dtype t, bool nhwc, bool add, int offset, const td_kernels *k, void *room,
               void (*move)(void *to, const void *from, size_t bytes, bool to_device));
#endif
