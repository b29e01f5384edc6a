/* tests/ddp/two_models.h: small models that are compared, one with a hook and one without, or rank against rank. */
#ifndef TD_TEST_TWO_MODELS_H
#define TD_TEST_TWO_MODELS_H
#include <math.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, now, __LINE__)

static const char *now;                                /* the case                                                            */

typedef struct { td_module *net; td_ddp *ddp; td_optim *opt; } side;

static inline void same_weights(side *a, const side *b)
{
    for (size_t i = 0; i < td_parameters(a->net).n; i++)
        td_assign(td_detach(td_parameters(a->net).list[i]), td_parameters(b->net).list[i]);
}

static inline side side_new(td_dtype t, int64_t in, int64_t hidden, int64_t out)
{
    td_seed(11);
    side s = { .net = td_nn_sequential(td_nn_linear(in, hidden, NULL), td_nn_tanh(), td_nn_linear(hidden, out, NULL)) };
    td_module_to(s.net, t);
    s.ddp = td_ddp_new(s.net, &(td_ddp_opts){ .first_bucket_bytes = 600, .bucket_bytes = 4000 });
    s.opt = td_sgd_new(td_parameters(s.net), &(td_sgd_opts){ .lr = 0.05 });
    return s;
}

static inline void side_free(side *s)
{
    td_ddp_free(s->ddp);
    td_optim_free(s->opt);
    td_module_free(s->net);
}

static inline td_tensor *rows_of(td_dtype t, int64_t n, int64_t width, int step)
{
    return td_cast(td_randn(TD_SHAPE(n, width), 5, (uint64_t)(step * 100 + rank)), t);
}

static inline void backward(side *s, td_tensor *x)
{
    TD_SCOPE();
    td_tensor *y = td_forward(s->net, x);
    td_backward(td_mean(td_mul(y, y), NULL, 0, false));
}

/* The largest difference of two lists, over the largest of the second. */
static inline double apart(td_tensors a, td_tensors b, bool gradients)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < a.n; i++) {
        TD_SCOPE();
        td_tensor *x = td_cast(gradients ? td_grad(a.list[i]) : a.list[i], TD_F64), *y = td_cast(gradients ? td_grad(b.list[i]) : b.list[i], TD_F64);
        x = td_contiguous(td_detach(x)), y = td_contiguous(td_detach(y));
        const double *p = td_data(x), *q = td_data(y);
        for (int64_t k = 0; k < td_numel(x); k++) {
            worst = fmax(worst, fabs(p[k] - q[k]));
            largest = fmax(largest, fabs(q[k]));
        }
    }
    return worst / largest;
}

/* Are the parameters the same, bit for bit, on all ranks? */
static inline bool replicas_equal(td_module *net)
{
    TD_SCOPE();
    td_tensors p = td_parameters(net);
    bool equal = true;
    for (size_t i = 0; i < p.n; i++) {
        td_tensor *mine = td_contiguous(td_detach(p.list[i])), *theirs = td_add(mine, td_zeros(TD_SCALAR, td_dtype_of(mine)));
        td_broadcast(td_world(), theirs, 0);
        equal &= memcmp(td_data(mine), td_data(theirs), (size_t)td_numel(mine) * td_dtype_size(td_dtype_of(mine))) == 0;
    }
    return equal;
}

#endif
