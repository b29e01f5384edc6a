/* tests/parity/run.c: first weights, one backward on batch 0, then 20 steps of each optimizer from the same first weights; of every tensor
 * its norm, sum and 64 elements. All hyperparameters are sums of few powers of two: golden.py has the same ones.
 */
#include "parity.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t parity_stream(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

td_tensor *parity_uniform(td_shape shape, const char *stream, double half_width, td_dtype dtype)
{
    td_tensor *u = td_shift(td_rand(shape, 2024, parity_stream(stream)), -0.5);
    return td_cast(td_scale(u, 2 * half_width), dtype);
}

td_tensor *parity_ids(td_shape shape, const char *stream, int64_t count)
{
    return td_cast(td_scale(td_cast(td_rand(shape, 2024, parity_stream(stream)), TD_F64), (double)count), TD_I64);
}

/* Matrices and kernels: +-h with h the power of two at or below sqrt(3/fan_in); weights of norms: 1 +- 1/8; biases: +- 1/8. */
static void draw_weights(td_module *net)
{
    td_tensors p = td_parameters(net);
    for (size_t i = 0; i < p.n; i++) {
        TD_SCOPE();
        td_shape s = td_shape_of(p.list[i]);
        const char *name = td_parameter_name(p.list[i]), *dot = strrchr(name, '.');
        bool weight = strstr(dot ? dot : name, "weight") != NULL;
        double h = 0.125;
        if (s.ndim >= 2)
            h = exp2(floor(log2(sqrt(3.0 * (double)s.dim[0] / (double)td_numel(p.list[i])))));
        td_tensor *u = parity_uniform(s, name, h, TD_F32);
        td_assign(p.list[i], s.ndim < 2 && weight ? td_shift(u, 1) : u);
    }
    td_tensors b = td_buffers(net);
    for (size_t i = 0; i < b.n; i++)
        td_fill(b.list[i], strstr(td_parameter_name(b.list[i]), "running_var") ? 1 : 0);
}

static void digest(parity_result *out, const char *kind, const char *name, td_tensor *x)
{
    TD_SCOPE();
    parity_entry *e = &out->entry[out->n++];
    snprintf(e->name, sizeof e->name, "%s%s%s", kind, *name ? "/" : "", name);
    td_tensor *d = td_contiguous(td_cast(td_detach(x), TD_F64));
    const double *v = td_data(d);
    int64_t n = td_numel(d);
    double squares = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        squares += v[i] * v[i];
        sum += v[i];
    }
    e->value[0] = (double)n;
    e->value[1] = sqrt(squares);
    e->value[2] = sum;
    int samples = n < SAMPLES ? (int)n : SAMPLES;
    for (int j = 0; j < samples; j++)
        e->value[3 + j] = v[j * n / samples];
    e->n = samples + 3;
}

static void digest_all(parity_result *out, const char *kind, td_tensors list)
{
    for (size_t i = 0; i < list.n; i++)
        digest(out, kind, td_parameter_name(list.list[i]), list.list[i]);
}

static td_module *fresh(const parity_model *m, td_dtype dtype)
{
    td_module *net = m->build();
    draw_weights(net);
    td_module_to(net, dtype);
    return net;
}

static td_tensor *step_loss(const parity_model *m, td_module *net, int batch, td_dtype dtype)
{
    return m->loss(m->logits(net, batch, dtype), batch);
}

static int first_backward(const parity_model *m, td_dtype dtype, parity_result *out)
{
    TD_SCOPE();
    td_module *net = fresh(m, dtype);
    td_tensor *logits = m->logits(net, 0, dtype), *loss = m->loss(logits, 0);
    digest(out, "logits", "", logits);
    digest(out, "loss", "", loss);
    int code = td_backward(loss);
    td_tensors p = td_parameters(net);
    for (size_t i = 0; !code && i < p.n; i++) {
        td_tensor *g = td_grad(p.list[i]);
        if (g)
            digest(out, "grad", td_parameter_name(p.list[i]), g);
    }
    digest_all(out, "buffer", td_buffers(net));
    td_module_free(net);
    return code ? code : td_error_pending();
}

static td_optim *optimizer(const parity_model *m, const char *name, td_tensors p)
{
    const double decay = 0x1p-6, beta1 = 0.875, beta2 = 0.984375;
    if (strcmp(name, "sgd") == 0)
        return td_sgd_new(p, &(td_sgd_opts){ .lr = 0x1p-6 * (m->sgd > 0 ? m->sgd : 1), .momentum = 0.875, .weight_decay = decay });
    if (strcmp(name, "adamw") == 0)
        return td_adamw_new(p, &(td_adamw_opts){ .lr = 0x1p-10 * (m->adamw > 0 ? m->adamw : 1), .beta1 = beta1, .beta2 = beta2, .eps = 0x1p-17,
                                                 .weight_decay = decay });
    if (strcmp(name, "lamb") == 0)
        return td_lamb_new(p, &(td_lamb_opts){ .lr = 0x1p-10, .beta1 = beta1, .beta2 = beta2, .eps = 0x1p-17, .weight_decay = decay });
    return td_lars_new(p, &(td_lars_opts){ .lr = 0x1p-2 * (m->lars > 0 ? m->lars : 1), .momentum = 0.875, .weight_decay = decay, .trust = 0x1p-7 });
}

static int twenty_steps(const parity_model *m, td_dtype dtype, const char *rule, parity_result *out)
{
    td_module *net = fresh(m, dtype);
    td_optim *opt = optimizer(m, rule, td_parameters(net));
    int code = 0;
    for (int k = 0; k < STEPS && !code; k++) {
        TD_SCOPE();
        code = td_backward(step_loss(m, net, k, dtype));
        if (!code)
            code = td_optim_step(opt);
    }
    digest_all(out, rule, td_parameters(net));
    td_optim_free(opt);
    td_module_free(net);
    return code;
}

int parity_run(const parity_model *m, td_dtype dtype, parity_result *out)
{
    static const char *const rules[] = { "sgd", "adamw", "lamb", "lars" };
    out->n = 0;
    int code = first_backward(m, dtype, out);
    for (int i = 0; i < 4 && !code; i++)
        code = twenty_steps(m, dtype, rules[i], out);
    return code;
}
