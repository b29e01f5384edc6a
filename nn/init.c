/* nn/init.c: initialisers with PyTorch's formulas, and how a layer makes a parameter.
 *
 * Every initialised tensor takes the next stream of (td_seed): the n-th one in a process draws the same numbers on every rank, whatever
 * happened between. Streams begin at 2^63, where td_rand with a stream counted from 0 never comes, so that weights are not made of the
 * same bits as somebody's data. td_seed with another seed, and td_finish, count from 0 again.
 */
#include "nn_impl.h"
#include <math.h>
#include <pthread.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t next_stream, seed_of_stream;

static uint64_t take_stream(uint64_t seed)
{
    pthread_mutex_lock(&lock);
    if (seed != seed_of_stream)
        next_stream = 0;
    seed_of_stream = seed;
    uint64_t stream = next_stream++;
    pthread_mutex_unlock(&lock);
    return stream + (UINT64_C(1) << 63);
}

void td__init_restart(void)
{
    pthread_mutex_lock(&lock);
    next_stream = 0;
    pthread_mutex_unlock(&lock);
}

/* ---- drawing ----------------------------------------------------------------------------------------------------- */

static int check(const char *who, const td_tensor *x)
{
    int rc = td__tensor_check(who, x);
    if (rc != 0)
        return rc;
    if (!td__is_float(x->dtype))
        return td__fail(TD_ERR_DTYPE, "%s: the tensor is %s, expected f32 or f64", who, td_dtype_name(x->dtype));
    return 0;
}

/* x = shift + scale * (uniform in [0,1), or standard normal) */
static int draw(td_tensor *x, bool normal, double scale, double shift)
{
    TD_SCOPE();
    TD_NO_GRAD();
    uint64_t seed = td_seed_get(), stream = take_stream(seed);
    td_tensor *r = td_to(normal ? td_randn(x->shape, seed, stream) : td_rand(x->shape, seed, stream), td_device_of(x));
    if (x->dtype != TD_F32)
        r = td_cast(r, x->dtype);
    return td_assign(x, td_shift(td_scale(r, scale), shift));
}

int td_nn_init_uniform(td_tensor *x, double low, double high)
{
    TD_ENTER();
    int rc = check("td_nn_init_uniform", x);
    if (rc != 0)
        return rc;
    if (!(low <= high) || !isfinite(high - low))
        return td__fail(TD_ERR_ARGUMENT, "td_nn_init_uniform: the range [%g, %g) is none", low, high);
    return draw(x, false, high - low, low);
}

int td_nn_init_normal(td_tensor *x, double mean, double std)
{
    TD_ENTER();
    int rc = check("td_nn_init_normal", x);
    if (rc != 0)
        return rc;
    if (!(std >= 0) || !isfinite(std) || !isfinite(mean))
        return td__fail(TD_ERR_ARGUMENT, "td_nn_init_normal: mean %g and std %g, expected finite ones and std 0 or more", mean, std);
    return draw(x, true, std, mean);
}

/* ---- by fan ------------------------------------------------------------------------------------------------------ */

/* As torch.nn.init: dimension 1 are the inputs, 0 the outputs, each times the receptive field. */
static int fans(const char *who, const td_tensor *x, double *in, double *out)
{
    *in = *out = 1;
    int rc = check(who, x);
    if (rc != 0)
        return rc;
    char text[128];
    if (x->shape.ndim < 2)
        return td__fail(TD_ERR_SHAPE, "%s: the tensor has shape %s, expected 2 dimensions or more to tell fan_in from fan_out", who,
                        td__shape_text(x->shape, text));
    double field = 1;
    for (int i = 2; i < x->shape.ndim; i++)
        field *= (double)x->shape.dim[i];
    *in = (double)x->shape.dim[1] * field;
    *out = (double)x->shape.dim[0] * field;
    return 0;
}

static int by_std(td_tensor *x, bool normal, double std)
{
    if (td__shape_numel(x->shape) == 0)
        return 0;
    double bound = sqrt(3.0) * std;
    return normal ? draw(x, true, std, 0) : draw(x, false, 2 * bound, -bound);
}

static int kaiming(const char *who, td_tensor *x, const td_nn_init_opts *opts, bool normal)
{
    double in, out, a = opts ? opts->a : 0;
    int rc = fans(who, x, &in, &out);
    if (rc != 0)
        return rc;
    if (!isfinite(a))
        return td__fail(TD_ERR_ARGUMENT, "%s: a is %g, expected the slope of a leaky relu", who, a);
    return by_std(x, normal, sqrt(2 / (1 + a * a) / (opts && opts->fan_out ? out : in)));
}

static int xavier(const char *who, td_tensor *x, const td_nn_init_opts *opts, bool normal)
{
    double in, out, gain = opts && opts->a != 0 ? opts->a : 1;
    int rc = fans(who, x, &in, &out);
    if (rc != 0)
        return rc;
    if (!(gain > 0) || !isfinite(gain))
        return td__fail(TD_ERR_ARGUMENT, "%s: the gain a is %g, expected more than 0", who, gain);
    return by_std(x, normal, gain * sqrt(2 / (in + out)));
}

int td_nn_init_kaiming_uniform(td_tensor *x, const td_nn_init_opts *opts)
{
    TD_ENTER();
    return kaiming("td_nn_init_kaiming_uniform", x, opts, false);
}

int td_nn_init_kaiming_normal(td_tensor *x, const td_nn_init_opts *opts)
{
    TD_ENTER();
    return kaiming("td_nn_init_kaiming_normal", x, opts, true);
}

int td_nn_init_xavier_uniform(td_tensor *x, const td_nn_init_opts *opts)
{
    TD_ENTER();
    return xavier("td_nn_init_xavier_uniform", x, opts, false);
}

int td_nn_init_xavier_normal(td_tensor *x, const td_nn_init_opts *opts)
{
    TD_ENTER();
    return xavier("td_nn_init_xavier_normal", x, opts, true);
}

/* ---- for layers -------------------------------------------------------------------------------------------------- */

/* kaiming_uniform with a = sqrt 5 is a bound of sqrt(6 / (6 fan_in)): PyTorch's default for weights, and for biases by decree. */
td_tensor *td__layer_parameter(td_module *m, const char *name, td_shape shape, int64_t fan_in)
{
    td_tensor *x = td_empty(shape, TD_F32);
    if (x->poisoned || td_nn_init_uniform(x, -1 / sqrt((double)fan_in), 1 / sqrt((double)fan_in)) != 0)
        return td__poison();
    return td_module_parameter(m, name, x);
}

td_module *td__layer_done(td_module *m)
{
    if (!td__pending())
        return m;
    td_module_free(m);                         /* nobody has seen it yet */
    return td__module_poison();
}
