/* bench/attention.c: td_attention beside the same in three operations (matmul, softmax, matmul), causal, f32.
 *
 *     ./attention                 (1,12,1024,64), 10 repetitions
 *     ./attention 2048 --runs 5   another T
 *
 * Prints rows of a Markdown table: medians in ms; GFLOP/s of the products that causal attention needs (half of T*T; forward 2 products,
 * backward 5), the same count for both; the pool's peak beyond the inputs and their gradients. The mask of the three operations is made
 * once and does not count. Backward begins with a product and a sum over the output, about 1 ms, in both.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include "common.h"

enum { HEADS = 12, WIDTH = 64, MAX_RUNS = 100 };

/* (T,T): 0 where key s <= query t, else -inf */
static td_tensor *causal_mask(int64_t t)
{
    float *m = malloc((size_t)(t * t) * sizeof *m);
    if (!m)
        return NULL;
    for (int64_t i = 0; i < t * t; i++)
        m[i] = i % t <= i / t ? 0 : -INFINITY;
    td_tensor *mask = td_from(m, TD_SHAPE(t, t), TD_F32);
    free(m);
    return mask;
}

static td_tensor *fused(td_tensor *const *x, td_tensor *mask)
{
    (void)mask;
    return td_attention(x[0], x[1], x[2], &(td_attention_opts){ .causal = true });
}

static td_tensor *three(td_tensor *const *x, td_tensor *mask)
{
    td_tensor *scores = td_scale(td_matmul(x[0], td_transpose(x[1], 2, 3)), 1 / sqrt((double)WIDTH));
    return td_matmul(td_softmax(td_add(scores, mask), -1), x[2]);
}

static void measure(const char *name, td_tensor *(*forward)(td_tensor *const *x, td_tensor *mask), td_tensor *const *x, td_tensor *mask,
                    td_tensor *g, int64_t t, int runs)
{
    double time[2][MAX_RUNS];
    const double product = 2.0 * HEADS * WIDTH * (double)(t * (t + 1) / 2) / 1e9;
    int64_t peak = 0;
    for (int i = -1; i < runs; i++) {                              /* the first warms up                                  */
        TD_SCOPE();
        td_tensor *leaves[] = { x[0], x[1], x[2] };
        const int64_t before = td_memory().live_bytes;
        td_memory_reset_peak();
        const double begin = now();
        td_tensor *y = forward(x, mask);
        const double middle = now();
        if (td_backward(td_sum(td_mul(y, g), NULL, 0, false)))
            exit(1);
        const double end = now();
        if (i < 0) {
            td_zero_grad((td_tensors){ leaves, 3 });
            continue;
        }
        time[0][i] = middle - begin, time[1][i] = end - middle;
        peak = td_memory().peak_bytes - before;
        td_zero_grad((td_tensors){ leaves, 3 });
    }
    const double f = median(time[0], runs), b = median(time[1], runs);
    printf("| %s | %.2f | %.0f | %.2f | %.0f | %.1f |\n", name, 1e3 * f, 2 * product / f, 1e3 * b, 5 * product / b, (double)peak / (1 << 20));
}

int main(int argc, char **argv)
{
    const int64_t t = argc > 1 && argv[1][0] != '-' ? atoll(argv[1]) : 1024;
    const int at = argc > 1 && argv[1][0] != '-' ? 2 : 1, runs = argc > at + 1 && !strcmp(argv[at], "--runs") ? atoi(argv[at + 1]) : 10;
    if (t < 1 || t > 16384 || runs < 1 || runs > MAX_RUNS) {
        fprintf(stderr, "attention: usage: attention [T, 1..16384] [--runs 1..%d]\n", MAX_RUNS);
        return 2;
    }
    td_init(&argc, &argv);
    const td_shape shape = TD_SHAPE(1, HEADS, t, WIDTH);
    td_tensor *x[3], *mask = causal_mask(t), *g = td_randn(shape, 1, 3);
    for (int i = 0; i < 3; i++)
        x[i] = td_randn(shape, 1, (uint64_t)i);
    td_requires_grad((td_tensors){ x, 3 }, true);
    printf("| (1,%d,%lld,%d) causal, f32 | forward, ms | GFLOP/s | backward, ms | GFLOP/s | peak, MiB |\n|---|---|---|---|---|---|\n", HEADS,
           (long long)t, WIDTH);
    measure("td_attention", fused, x, mask, g, t, runs);
    measure("matmul, softmax, matmul", three, x, mask, g, t, runs);
    return td_finish();
}
