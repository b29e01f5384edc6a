/* tests/optim/capture_steps.h: steps of four models and what they leave, for the tests of captured memory: called (eager) and replayed, with all memory
 * that should hold nothing filled with NaNs between replays.
 */
#ifndef TD_TESTS_CAPTURE_STEPS_H
#define TD_TESTS_CAPTURE_STEPS_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <capture.h>
#include <nn_impl.h>
#include <optim_impl.h>
#include <quiet_test.h>
#include "../../examples/05_gpt/model.h"
#include "../../examples/06_resnet/model.h"

/* ---- steps -------------------------------------------------------------------------------------------------------------------------------- */

enum { ROWS = 8, CLASSES = 10, TOKENS = 32, STEPS = 8, MOST = 1 << 21 };
typedef enum { MLP, CNN, RESNET, GPT, MODELS } kind;
static const char *const name[MODELS] = { "MLP", "CNN", "ResNet", "GPT" };

typedef struct job job;
struct job {
    kind of;
    td_module *net;
    gpt *text;
    td_optim *opt;
    td_tensor *kept;                           /* a result that the step keeps                                               */
    bool keeps, half, outside;                 /* outside: the optimizer is called after the replay                           */
    td_tensor *(*between)(job *j, td_tensor *x);               /* NULL, or an operation more before the loss                   */
};

static inline job begin(kind of)
{
    job j = { .of = of };
    td_seed(5);
    td_step_set(0);
    td_samples(NULL);
    switch (of) {
    case MLP:
        j.net = td_nn_sequential(td_nn_linear(40, 300, NULL), td_nn_gelu(), td_nn_layer_norm(TD_SHAPE(300), NULL), td_nn_dropout(0.3),
                                 td_nn_linear(300, 300, NULL), td_nn_tanh(), td_nn_linear(300, CLASSES, NULL));
        break;
    case CNN:
        j.net = td_nn_sequential(td_nn_conv2d(3, 16, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_batch_norm(16, NULL), td_nn_relu(),
                                 td_nn_conv2d(16, 16, 3, NULL), td_nn_relu(), td_nn_max_pool2d(2, NULL), td_nn_dropout(0.25), td_nn_flatten(),
                                 td_nn_linear(784, 64, NULL), td_nn_silu(), td_nn_linear(64, CLASSES, NULL));
        break;
    case RESNET:
        j.net = resnet_new(&(resnet_opts){ .depth = 18, .width = 4, .channels = 3, .classes = CLASSES });
        break;
    default:
        j.text = gpt_new(&(gpt_opts){ .layers = 2, .width = 64, .heads = 2, .context = TOKENS, .vocab = 96, .dropout = 0.1 });
        j.net = &j.text->base;
    }
    for (size_t i = 0; i < td_parameters(j.net).n; i++) {      /* numbers of initialisation are counted over the process        */
        TD_NO_GRAD();
        TD_SCOPE();
        td_tensor *p = td_parameters(j.net).list[i];
        td_assign(p, td_scale(td_randn(td_shape_of(p), 3, i), 0.1));
    }
    j.opt = td_adamw_new(td_parameters(j.net), &(td_adamw_opts){ .lr = 3e-3, .weight_decay = 0.1 });
    return j;
}

static inline void end(job *j)
{
    td_samples(NULL);
    td_release(j->kept);
    td_optim_free(j->opt);
    td_module_free(j->net);
}

static inline td_tensors batch(const job *j, int s, td_tensor *into[2])
{
    int64_t target[ROWS * TOKENS], ids[ROWS * TOKENS];
    for (int i = 0; i < ROWS * TOKENS; i++) {
        target[i] = (3 * i + s) % CLASSES;
        ids[i] = (7 * i + 3 * s) % 96;
    }
    if (j->of == GPT) {
        into[0] = td_from(ids, TD_SHAPE(ROWS, TOKENS), TD_I64);
        into[1] = td_from(target, TD_SHAPE(ROWS, TOKENS), TD_I64);
    } else {
        into[0] = td_randn(j->of == MLP ? TD_SHAPE(ROWS, 40) : j->of == CNN ? TD_SHAPE(ROWS, 3, 16, 16) : TD_SHAPE(ROWS, 3, 12, 12), 5, (uint64_t)s);
        into[1] = td_from(target, TD_SHAPE(ROWS), TD_I64);
    }
    return (td_tensors){ into, 2 };
}

static inline td_tensor *loss_of(job *j, td_tensors in)
{
    TD_AUTOCAST(j->half ? TD_BF16 : TD_F32);
    if (j->of == GPT)
        return td_escape(gpt_loss(j->text, in.list[0], in.list[1]));
    td_tensor *y = td_forward(j->net, in.list[0]);
    if (j->keeps && !j->kept)
        j->kept = td_keep(td_exp(y));
    if (j->between)
        y = j->between(j, y);
    return td_escape(td_cross_entropy(y, in.list[1], NULL));
}

static inline td_tensor *step(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss = loss_of(j, in);
    td_backward(loss);
    if (!j->outside)
        td_optim_step(j->opt);
    return loss;
}

/* ---- what a run leaves -------------------------------------------------------------------------------------------------------------------- */

typedef struct { char bytes[MOST]; size_t n; float loss[STEPS]; } outcome;
static outcome want, got;

static inline void look(job *j, outcome *o)
{
    o->n = 0;
    td_tensors lists[] = { td_parameters(j->net), td_buffers(j->net), { &j->kept, j->kept != NULL } };
    for (size_t l = 0; l < TD_COUNT(lists); l++)
        for (size_t i = 0; i < lists[l].n; i++) {
            size_t n = (size_t)td_numel(lists[l].list[i]) * td_dtype_size(td_dtype_of(lists[l].list[i]));
            assert_true(o->n + n <= sizeof o->bytes);
            assert_int_equal(td_copy_out(lists[l].list[i], o->bytes + o->n, n), 0);
            o->n += n;
        }
}

static inline void expect_same(const char *what)
{
    for (int s = 0; s < STEPS; s++)
        if (memcmp(&want.loss[s], &got.loss[s], 4))
            fail_msg("%s: loss %d is %.9g, expected %.9g", what, s, got.loss[s], want.loss[s]);
    assert_int_equal(want.n, got.n);
    for (size_t i = 0; i < want.n; i++)
        if (want.bytes[i] != got.bytes[i])
            fail_msg("%s: byte %zu of %zu of what is left differs", what, i, want.n);
    assert_string_equal(td_error_pending() ? td_error_message() : "", "");
}

static inline void eager(job *j)
{
    for (int s = 0; s < STEPS; s++) {
        TD_SCOPE();
        td_tensor *in[2];
        if (j->kept)
            td_release(j->kept);
        j->kept = NULL;
        want.loss[s] = (float)td_item(step(batch(j, s, in), j));
        if (j->outside)
            td_optim_step(j->opt);
    }
    look(j, &want);
}

/* What nobody should read is not a number. */
static inline void spoil(const td_graph *g)
{
    const td__pool_plan *p = td__placing_plan(g);
    if (!p || td__pool_plan_busy((td__pool_plan *)(uintptr_t)p))
        return;
    for (uint32_t i = 0; i < p->places; i++)
        if (p->place[i].order != TD__POOL_NEVER) {
            TD__UNPOISON(p->memory + p->place[i].at, TD__POOL_HEADER + p->place[i].bytes);
            memset(p->memory + p->place[i].at, 0xff, TD__POOL_HEADER + p->place[i].bytes);
            TD__POISON(p->memory + p->place[i].at, TD__POOL_HEADER + p->place[i].bytes);
        }
    for (uint32_t i = 0; i < p->stretches; i++) {
        TD__UNPOISON(p->memory + p->stretch[i].at, p->stretch[i].bytes);
        memset(p->memory + p->stretch[i].at, 0xff, p->stretch[i].bytes);
    }
}

static inline float once(td_graph *g, job *j, int s)
{
    TD_SCOPE();
    td_tensor *in[2];
    spoil(g);
    float loss = (float)td_item(td_replay(g, batch(j, s, in)));
    if (j->outside)
        td_optim_step(j->opt);
    return loss;
}

static inline td_graph *first(job *j, const td_capture_opts *opts)
{
    TD_SCOPE();
    td_tensor *in[2];
    td_graph *g = td_capture(step, j, batch(j, 0, in), opts);
    got.loss[0] = (float)td_item(td_graph_result(g));
    if (j->outside)
        td_optim_step(j->opt);
    return g;
}

static inline td_graph *replays(job *j, const td_capture_opts *opts)
{
    td_graph *g = first(j, opts);
    for (int s = 1; s < STEPS; s++)
        got.loss[s] = once(g, j, s);
    look(j, &got);
    return g;
}

#endif
