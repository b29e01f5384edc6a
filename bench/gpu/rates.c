/* bench/gpu/rates.c: what the device reaches: bf16 products of 8192 x 8192 matrices of random numbers, TFLOP/s, and copying 4 GiB of memory,
 * GB/s read and written. Medians of windows of ten. One line: "rates TFLOP/s GB/s".  rates [SIZE [MIB]] for small devices.
 */
#include "../common.h"
#include "worker.h"
#include <stdio.h>
#include <stdlib.h>

enum { WINDOWS = 7, TIMES = 10 };

static double median_seconds(void (*once)(void *), void *user)
{
    double t[WINDOWS];
    for (int w = 0; w < WINDOWS; w++) {
        once(user);
        td_synchronize(td_device_default());
        double since = now();
        for (int i = 0; i < TIMES; i++)
            once(user);
        td_synchronize(td_device_default());
        t[w] = (now() - since) / TIMES;
    }
    return median(t, WINDOWS);
}

static void product(void *user)
{
    TD_SCOPE();
    td_tensor **t = user;
    td_matmul(t[0], t[1]);
}

static void copy(void *user)
{
    td_tensor **t = user;
    td_assign(t[1], t[0]);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    const int64_t n = argc > 1 ? atoll(argv[1]) : 8192, bytes = (argc > 2 ? atoll(argv[2]) : 4096) << 20;
    double flops, rate;
    TD_NO_GRAD();
    {
        TD_SCOPE();
        td_tensor *t[2] = { td_cast(td_randn(TD_SHAPE(n, n), 1, 0), TD_BF16), td_cast(td_randn(TD_SHAPE(n, n), 1, 1), TD_BF16) };
        flops = 2.0 * (double)n * (double)n * (double)n / median_seconds(product, t);
    }
    {
        TD_SCOPE();
        td_tensor *t[2] = { td_zeros(TD_SHAPE(bytes / 4), TD_F32), td_zeros(TD_SHAPE(bytes / 4), TD_F32) };
        rate = 2.0 * (double)bytes / median_seconds(copy, t);
    }
    printf("rates %.4g %.4g\n", 1e-12 * flops, 1e-9 * rate);
    return td_finish();
}
