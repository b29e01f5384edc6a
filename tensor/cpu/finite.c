/* tensor/cpu/finite.c: how many elements are NaN or infinite, and which comes first. In all four floating formats that is one comparison of
 * integers: the exponent's bits are all ones. Whole blocks are counted; only where one holds something is it looked at element by element.
 */
#include "cpu.h"

#define COUNT(name, U, EXPONENT)                                                                             \
    static int64_t name(int64_t n, const U *restrict x)                                                      \
    {                                                                                                        \
        U bad = 0;                                                                                           \
        _Pragma("omp simd reduction(+ : bad)")                                                               \
        for (int64_t i = 0; i < n; i++)                                                                      \
            bad = (U)(bad + ((x[i] & (EXPONENT)) == (EXPONENT)));                                            \
        return (int64_t)bad;                                                                                 \
    }
COUNT(count_f64, uint64_t, UINT64_C(0x7ff0000000000000))
COUNT(count_f32, uint32_t, UINT32_C(0x7f800000))
COUNT(count_bf16, uint16_t, UINT16_C(0x7f80))
COUNT(count_f16, uint16_t, UINT16_C(0x7c00))

static int64_t count(td_dtype t, int64_t n, const void *x)
{
    return t == TD_F64 ? count_f64(n, x) : t == TD_F32 ? count_f32(n, x) : t == TD_BF16 ? count_bf16(n, x) : count_f16(n, x);
}

void K(not_finite)(td_dtype t, int64_t n, const void *x, double *total, bool add, int64_t *first)
{
    const size_t size = td_dtype_size(t);
    const char *at = x;
    int64_t bad = 0, block = n;                  /* the first block that holds one begins here                                */
    _Pragma("omp parallel for schedule(static) reduction(+ : bad) reduction(min : block) if (n >= TD_PARALLEL)")
    for (int64_t b = 0; b < n; b += TD_BLOCK) {
        int64_t here = count(t, n - b < TD_BLOCK ? n - b : TD_BLOCK, at + (size_t)b * size);
        bad += here;
        if (here && b < block)
            block = b;
    }
    *total = (add ? *total : 0) + (double)bad;
    if (!first)
        return;
    *first = -1;
    if (bad) {
        while (!count(t, 1, at + (size_t)block * size))
            block++;
        *first = block;
    }
}
