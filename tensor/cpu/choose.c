/* tensor/cpu/choose.c: which copy of the CPU kernels this process uses, and whether convolutions may save products. Compiled once, not per
 * instruction set.
 *
 * The rule: the widest instruction set that the processor has, that the operating system saves on a context switch (the compiler's
 * __builtin_cpu_supports asks both), and that the test suite has run on a real machine: all three have, so AVX-512, else AVX2, else
 * baseline. TANDEM_ISA names one instead; a name that is unknown or that this processor lacks is an error, never another set.
 * td__cpu_kernels_use lets ranks on different processors agree on the lowest.
 */
#include <stdatomic.h>
#include <string.h>
#include <tensor_impl.h>
#include "cpu.h"

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

static bool always(void)
{
    return true;
}

/* The best first. */
static const struct {
    const char *name;
    bool (*supported)(void);
    const td_kernels *kernels;
} sets[] = {
#if defined(__x86_64__)
    { "avx512", has_avx512, &td__cpu_kernels_avx512 },
    { "avx2", has_avx2, &td__cpu_kernels_avx2 },
#endif
    { "baseline", always, &td__cpu_kernels_baseline },
};

static _Atomic(const td_kernels *) chosen;

const td_kernels *td__cpu_kernels_named(const char *name)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (size_t i = 0; i < TD_COUNT(sets); i++)
        if (strcmp(sets[i].name, name) == 0)
            return sets[i].supported() ? sets[i].kernels : NULL;
    return NULL;
}

static const td_kernels *widest(void)
{
    for (size_t i = 0; i < TD_COUNT(sets); i++) {
        const td_kernels *k = td__cpu_kernels_named(sets[i].name);
        if (k)
            return k;
    }
    return &td__cpu_kernels_baseline;
}

static const td_kernels *choose(void)
{
    const char *wish = td__env(TD_ENV_ISA);
    if (!wish || strcmp(wish, "auto") == 0)
        return widest();
    const td_kernels *k = td__cpu_kernels_named(wish);
    if (k)
        return k;
    bool known = strcmp(wish, "avx2") == 0 || strcmp(wish, "avx512") == 0;
    td__fail(TD_ERR_ARGUMENT, known ? "TANDEM_ISA is \"%s\", but this processor or operating system lacks it"
                                    : "TANDEM_ISA is \"%s\": expected auto, baseline, avx2 or avx512", wish);
    return &td__cpu_kernels_baseline;      /* the error is pending; handles stay usable */
}

const td_kernels *td__cpu_kernels(void)
{
    const td_kernels *k = atomic_load_explicit(&chosen, memory_order_acquire);
    if (__builtin_expect(!k, 0)) {
        k = choose();
        atomic_store_explicit(&chosen, k, memory_order_release);
    }
    return k;
}

void td__cpu_kernels_use(const td_kernels *kernels)
{
    atomic_store(&chosen, kernels);
}

/* TANDEM_CONV, read once: 1 direct, 2 auto */
bool td__conv_direct(void)
{
    static _Atomic int said;
    int now = atomic_load_explicit(&said, memory_order_acquire);
    if (__builtin_expect(now == 0, 0)) {
        const char *wish = td__env(TD_ENV_CONV);
        now = wish && strcmp(wish, "direct") == 0 ? 1 : 2;
        if (wish && now == 2 && strcmp(wish, "auto") != 0)
            td__fail(TD_ERR_ARGUMENT, "TANDEM_CONV is \"%.100s\": expected auto or direct", wish);
        atomic_store_explicit(&said, now, memory_order_release);
    }
    return now == 1;
}
