/* tests/cuda/on_device.h: what tests of kernels without operations share: memory of the device "cuda" (made up, or a GPU), and numbers.
 */
#ifndef TD_ON_DEVICE_H
#define TD_ON_DEVICE_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <tensor_impl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const td_device_ops *dev;
static const td_kernels *gpu, *cpu;

static inline void *up(const void *from, size_t bytes)
{
    void *block = dev->alloc(0, bytes + 64);
    assert_non_null(block);
    assert_int_equal(dev->copy(0, block, false, from, true, bytes), 0);
    return block;
}

static inline void into(void *to, const void *from, size_t bytes)
{
    assert_int_equal(dev->copy(0, to, false, from, true, bytes), 0);
}

static inline void down(void *to, const void *from, size_t bytes)
{
    assert_int_equal(dev->copy(0, to, true, from, false, bytes), 0);
    assert_int_equal(dev->synchronize(0), 0);
}

static inline double number(uint64_t *state)              /* in [-2, 2], with full mantissas */
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)*state / 4611686018427387904.0;
}

static inline void put(td_dtype t, void *p, int64_t i, double v)
{
    td__element_put(t, (char *)p + (size_t)i * td_dtype_size(t), v);
}

static inline double get(td_dtype t, const void *p, int64_t i)
{
    return td__element_get(t, (const char *)p + (size_t)i * td_dtype_size(t));
}

/* Without a device the program ends: with 77, skipped, if its argument is or-skip. */
static inline void find_device(int argc, char **argv)
{
    td_errors(TD_ERRORS_RETURN);
    cpu = td__cpu_kernels();
    dev = td__device_ops((td_device){ TD_CUDA, 0 });
    if (!dev) {
        printf("no CUDA device: %s\n", td_error_message());
        exit(argc > 1 && strcmp(argv[1], "or-skip") == 0 ? 77 : 1);
    }
    td_errors(TD_ERRORS_ABORT);
    gpu = dev->kernels;
}
#endif
