/* tests/gpu/test_conv.c: convolutions and both gradients on a real GPU, through cuDNN or (TANDEM_CUDNN=off) our own kernels: the cases of
 * tests/cuda/conv_cases.h in every type and order in memory, written and added, on and off their alignment. And the same bits twice.
 */
#include "gpu.h"
#include "../cuda/conv_cases.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static const td_device_ops *ops;
static void *room;

static void move(void *to, const void *from, size_t bytes, bool to_device)
{
    ops->copy(0, to, !to_device, from, to_device, bytes);
}

static void cases(void **state)
{
    (void)state;
    static const td_dtype types[] = { TD_F32, TD_BF16, TD_F16, TD_F64 };
    int bad = 0;
    for (size_t i = 0; i < TD_COUNT(conv_cases); i++)
        for (int k = 0; k < 32; k++)
            bad += conv_check(&conv_cases[i], types[k % 4], k & 4, k & 8, k & 16 ? 1 : 0, ops->kernels, room, move);
    if (td_error_pending())
        fail_msg("%s", td_error_message());
    assert_int_equal(bad, 0);
}

/* Numbers that cannot be summed exactly, in a convolution large enough to be cut over the device, give the same bits every time. */
static void same_bits(void **state)
{
    (void)state;
    td_conv2d_shape s = { .n = 16, .c = 64, .h = 28, .w = 28, .o = 128, .kh = 3, .kw = 3, .oh = 28, .ow = 28, .stride = 1, .padding = 1, .dilation = 1,
                          .groups = 1, .nhwc = true };
    const size_t nx = 16 * 64 * 28 * 28, ny = 2 * nx, nw = 64 * 128 * 9;
    float *host = malloc(ny * sizeof *host), *again = malloc(ny * sizeof *again);
    char *x = ops->alloc(0, nx * 2), *w = ops->alloc(0, nw * 2), *g = ops->alloc(0, ny * 2), *gw = ops->alloc(0, nw * 2), *wide = ops->alloc(0, ny * 4);
    assert_true(host && again && x && w && g && gw && wide);
    char *const to[] = { x, w, g };
    const size_t count[] = { nx, nw, ny };
    for (int i = 0; i < 3; i++) {
        const td_loop l = { .ndim = 1, .dim = { (int64_t)count[i] }, .stride = { { 1 }, { 1 } } };
        ops->kernels->rand((int64_t)count[i], (float *)wide, 7, (uint64_t)i, true);
        ops->kernels->copy(&l, TD_BF16, to[i], TD_F32, wide, false);
    }
    for (int i = 0; i < 4; i++) {
        ops->kernels->conv2d_grad_w(TD_BF16, &s, gw, NULL, g, x, false, false);
        move(i ? again : host, gw, nw * 2, false);
        if (i)
            assert_memory_equal(host, again, nw * 2);
    }
    if (td_error_pending())
        fail_msg("%s", td_error_message());
    char *const all[] = { x, w, g, gw, wide };
    for (size_t i = 0; i < TD_COUNT(all); i++)
        ops->free(0, all[i]);
    free(host);
    free(again);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(cases), cmocka_unit_test(same_bits) };
    need_gpu();
    ops = td__device_ops(td_device_default());
    room = ops->alloc(0, CONV_ROOM);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ops->free(0, room);
    return failed;
}
