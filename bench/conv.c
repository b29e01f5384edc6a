/* bench/conv.c: how fast the convolutions of three networks are, layer by layer, beside the processor's arithmetic.
 *
 *     conv cnn|resnet18|resnet50 [--calls 5]      OMP_NUM_THREADS=1 for one core; TANDEM_CONV=direct without Winograd's algorithm
 *
 * CNN: 28x28x1, batch 64. ResNet-18: 28x28x1 with a stem for small images, batch 32. ResNet-50: 224x224x3, batch 4. Each line: how often the layer occurs, and
 * for the forward, the gradient of x and that of w the best of the calls in ms, and its share of the peak: products that the plain sum needs over time, over
 * a loop of FMAs in the widest registers. Winograd's algorithm needs fewer products, so its share may pass 100 %.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include "common.h"

typedef struct { const char *net; int count, n, c, size, o, kernel, stride, padding; } layer;
static const layer layers[] = {
    { "cnn", 1, 64, 1, 28, 32, 3, 1, 0 },         { "cnn", 1, 64, 32, 26, 64, 3, 1, 0 },
    { "resnet18", 1, 32, 1, 28, 64, 3, 1, 1 },    { "resnet18", 4, 32, 64, 28, 64, 3, 1, 1 },    { "resnet18", 1, 32, 64, 28, 128, 3, 2, 1 },
    { "resnet18", 1, 32, 64, 28, 128, 1, 2, 0 },  { "resnet18", 3, 32, 128, 14, 128, 3, 1, 1 },  { "resnet18", 1, 32, 128, 14, 256, 3, 2, 1 },
    { "resnet18", 1, 32, 128, 14, 256, 1, 2, 0 }, { "resnet18", 3, 32, 256, 7, 256, 3, 1, 1 },   { "resnet18", 1, 32, 256, 7, 512, 3, 2, 1 },
    { "resnet18", 1, 32, 256, 7, 512, 1, 2, 0 },  { "resnet18", 3, 32, 512, 4, 512, 3, 1, 1 },
    { "resnet50", 1, 4, 3, 224, 64, 7, 2, 3 },    { "resnet50", 1, 4, 64, 56, 64, 1, 1, 0 },     { "resnet50", 3, 4, 64, 56, 64, 3, 1, 1 },
    { "resnet50", 4, 4, 64, 56, 256, 1, 1, 0 },   { "resnet50", 2, 4, 256, 56, 64, 1, 1, 0 },    { "resnet50", 1, 4, 256, 56, 128, 1, 1, 0 },
    { "resnet50", 1, 4, 128, 56, 128, 3, 2, 1 },  { "resnet50", 1, 4, 256, 56, 512, 1, 2, 0 },   { "resnet50", 3, 4, 128, 28, 128, 3, 1, 1 },
    { "resnet50", 4, 4, 128, 28, 512, 1, 1, 0 },  { "resnet50", 3, 4, 512, 28, 128, 1, 1, 0 },   { "resnet50", 1, 4, 512, 28, 256, 1, 1, 0 },
    { "resnet50", 1, 4, 256, 28, 256, 3, 2, 1 },  { "resnet50", 1, 4, 512, 28, 1024, 1, 2, 0 },  { "resnet50", 5, 4, 256, 14, 256, 3, 1, 1 },
    { "resnet50", 6, 4, 256, 14, 1024, 1, 1, 0 }, { "resnet50", 5, 4, 1024, 14, 256, 1, 1, 0 },  { "resnet50", 1, 4, 1024, 14, 512, 1, 1, 0 },
    { "resnet50", 1, 4, 512, 14, 512, 3, 2, 1 },  { "resnet50", 1, 4, 1024, 14, 2048, 1, 2, 0 }, { "resnet50", 2, 4, 512, 7, 512, 3, 1, 1 },
    { "resnet50", 3, 4, 512, 7, 2048, 1, 1, 0 },  { "resnet50", 2, 4, 2048, 7, 512, 1, 1, 0 },
};

/* FMAs per second times two, over 14 independent chains, the best of many short runs */
#define PEAK(name, isa, bytes)                                                                               \
    __attribute__((target(isa))) static double name(void)                                                    \
    {                                                                                                        \
        typedef float wide __attribute__((vector_size(bytes)));                                              \
        wide a[14], x = (wide){ 0 } + 0.9999f, y = (wide){ 0 } + 1e-9f;                                      \
        double best = 0;                                                                                     \
        for (int k = 0; k < 14; k++)                                                                         \
            a[k] = y * (float)k;                                                                             \
        for (int run = 0; run < 200; run++) {                                                                \
            const double begin = now();                                                                      \
            for (int i = 0; i < 10000; i++)                                                                  \
                for (int k = 0; k < 14; k++)                                                                 \
                    a[k] = a[k] * x + y;                                                                     \
            const double rate = 10000.0 * 14 * 2 * (bytes) / 4 / (now() - begin);                            \
            best = rate > best ? rate : best;                                                                \
        }                                                                                                    \
        volatile float sink = 0;                                                                             \
        for (int k = 0; k < 14; k++)                                                                         \
            sink += a[k][0];                                                                                 \
        return best;                                                                                         \
    }
#if defined(__x86_64__)
PEAK(peak_512, "avx512f,prefer-vector-width=512", 64)
PEAK(peak_256, "avx2,fma", 32)
#endif
PEAK(peak_128, "default", 16)

static double peak(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return peak_512();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return peak_256();
#endif
    return peak_128();
}

static double forward(td_tensor *x, td_tensor *w, const td_conv2d_opts *opts)
{
    TD_SCOPE();
    TD_NO_GRAD();
    const double begin = now();
    td_conv2d(x, w, NULL, opts);
    return now() - begin;
}

static void starts(td_tensor *grad, void *begin)
{
    (void)grad;
    *(double *)begin = now();
}

/* From when the output's gradient is there to the end */
static double gradient(td_tensor *x, td_tensor *w, const td_conv2d_opts *opts, bool of_x)
{
    TD_SCOPE();
    td_requires_grad((td_tensors){ &x, 1 }, of_x);
    td_requires_grad((td_tensors){ &w, 1 }, !of_x);
    double begin = 0;
    td_tensor *y = td_conv2d(x, w, NULL, opts);
    td_hook(y, starts, &begin);
    td_backward(td_sum(y, NULL, 0, false));
    const double time = now() - begin;
    td_zero_grad((td_tensors){ of_x ? &x : &w, 1 });
    return time;
}

int main(int argc, char **argv)
{
    const char *net = argc > 1 ? argv[1] : "";
    int calls = argc > 3 && !strcmp(argv[2], "--calls") ? atoi(argv[3]) : 5;
    if (strcmp(net, "cnn") && strcmp(net, "resnet18") && strcmp(net, "resnet50")) {
        fprintf(stderr, "conv: usage: conv cnn|resnet18|resnet50 [--calls N]\n");
        return 2;
    }
    double total[3] = { 0 }, products[3] = { 0 };
    td_init(&argc, &argv);
    const double most = peak();
    printf("FMA %.0f GFLOP/s on one thread\n\n| layers | of | forward | gradient of x | of w |\n|---|---|---|---|---|\n", most / 1e9);
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
        const layer *l = &layers[i];
        if (strcmp(l->net, net))
            continue;
        TD_SCOPE();
        const int64_t out = (l->size + 2 * l->padding - l->kernel) / l->stride + 1;
        const double flops = 2.0 * l->n * l->o * (double)(out * out) * l->c * l->kernel * l->kernel;
        const td_conv2d_opts opts = { .stride = l->stride, .padding = l->padding };
        td_tensor *x = td_randn(TD_SHAPE(l->n, l->c, l->size, l->size), 1, 0), *w = td_randn(TD_SHAPE(l->o, l->c, l->kernel, l->kernel), 1, 1);
        double best[3] = { 1e9, 1e9, 1e9 };
        for (int k = 0; k < calls + 1; k++) {
            const double t[3] = { forward(x, w, &opts), gradient(x, w, &opts, true), gradient(x, w, &opts, false) };
            for (int j = 0; j < 3; j++)
                best[j] = t[j] < best[j] ? t[j] : best[j];
        }
        printf("| %d | %dx%d of %d, %dx%d to %d, stride %d |", l->count, l->size, l->size, l->c, l->kernel, l->kernel, l->o, l->stride);
        for (int j = 0; j < 3; j++) {
            printf(" %.2f (%.0f %%) |", best[j] * 1e3, 100 * flops / best[j] / most);
            if (l->c <= 3 && j == 1)
                continue;            /* nobody asks for the pictures' gradient                                               */
            total[j] += l->count * best[j];
            products[j] += l->count * flops;
        }
        printf("\n");
    }
    printf("| all | |");
    for (int j = 0; j < 3; j++)
        printf(" %.1f (%.0f %%) |", total[j] * 1e3, 100 * products[j] / total[j] / most);
    printf("\n\ntogether %.1f ms\n", (total[0] + total[1] + total[2]) * 1e3);
    return td_finish();
}
