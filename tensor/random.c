/* tensor/random.c: tensors of random numbers, and the job's seed.
 *
 * Numbers are Philox 4x32-10 of (seed, stream, element): tensor/cpu/random.c lays out the counters. Nothing else enters, so a tensor
 * is the same on every rank, with any number of threads, and a longer one begins with a shorter one.
 */
#include "tensor_impl.h"

static _Atomic uint64_t job_seed;

void td_seed(uint64_t seed)
{
    atomic_store(&job_seed, seed);
}

uint64_t td_seed_get(void)
{
    return atomic_load(&job_seed);
}

static td_tensor *make_random(const char *who, td_shape shape, uint64_t seed, uint64_t stream, bool normal)
{
    if (td__shape_check(who, shape))
        return td__poison();
    td_tensor *x = td__tensor_new(shape, TD_F32, td_device_default());
    if (x->poisoned)
        return x;
    if (td__need(who, x, rand)) {
        td__tensor_unref(x);
        return td__poison();
    }
    td__kernels(x)->rand(td__shape_numel(shape), td__ptr(x), seed, stream, normal);
    if (td__recording_now)
        td__record_constant(who, x);
    return td__scoped_tensor(x);
}

td_tensor *td_rand(td_shape shape, uint64_t seed, uint64_t stream)
{
    TD_ENTER();
    return make_random("td_rand", shape, seed, stream, false);
}

td_tensor *td_randn(td_shape shape, uint64_t seed, uint64_t stream)
{
    TD_ENTER();
    return make_random("td_randn", shape, seed, stream, true);
}

td_tensor *td_randint(int64_t low, int64_t high, td_shape shape, uint64_t seed, uint64_t stream)
{
    TD_ENTER();
    if (td__shape_check("td_randint", shape))
        return td__poison();
    if (low >= high) {
        td__fail(TD_ERR_ARGUMENT, "td_randint: the range [%lld, %lld) is empty", (long long)low, (long long)high);
        return td__poison();
    }
    td_tensor *x = td__tensor_new(shape, TD_I64, td_device_default());
    if (x->poisoned)
        return x;
    if (td__need("td_randint", x, randint)) {
        td__tensor_unref(x);
        return td__poison();
    }
    td__kernels(x)->randint(td__shape_numel(shape), td__ptr(x), low, high, seed, stream);
    if (td__recording_now)
        td__record_constant("td_randint", x);
    return td__scoped_tensor(x);
}
