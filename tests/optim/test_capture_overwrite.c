/* tests/optim/test_capture_overwrite.c: in a captured step, too, the gradient of cross entropy lies over the logits where only the list holds them: one
 * such matrix is planned, not two, and nothing else changes: the step's bits, whoever else looks at the logits, before or after.
 */
#include "capture_steps.h"

enum { MANY_ROWS = 256, WIDE = 4096, HIDDEN = 16, IN = 8 };
static const int64_t LOGITS = (int64_t)MANY_ROWS * WIDE * 4;

typedef enum { PLAIN, VIEWED, CAST, ADDED, SAVED_TWICE, TWO_LOSSES, READ_LATER, RESULT, RETAINED, ALL } way;
static const char *const ways[ALL] = { "plain", "a view", "in bf16", "a second reader", "saved twice", "two losses", "read after the backward", "the result", "walked twice" };
static const bool once_is_enough[ALL] = { [PLAIN] = true, [VIEWED] = true };

typedef struct { way how; job j; } run;

/* The logits' handle dies here, as in a module; what is left is what nodes save. */
static td_tensor *loss_from(run *r, td_tensors in, td_tensor **later)
{
    TD_SCOPE();
    TD_AUTOCAST(r->how == CAST ? TD_BF16 : TD_F32);
    td_tensor *y = td_forward(r->j.net, in.list[0]), *loss;
    if (r->how == VIEWED)
        y = td_reshape(td_reshape(y, TD_SHAPE(MANY_ROWS / 4, 4, WIDE)), TD_SHAPE(-1, WIDE));
    loss = td_cross_entropy(y, in.list[1], NULL);
    if (r->how == ADDED)
        loss = td_add(loss, td_scale(td_mean(y, NULL, 0, false), 1e-2));
    if (r->how == SAVED_TWICE)
        loss = td_add(loss, td_scale(td_mean(td_mul(y, y), NULL, 0, false), 1e-2));
    if (r->how == TWO_LOSSES)
        loss = td_add(loss, td_cross_entropy(y, in.list[1], &(td_cross_entropy_opts){ .label_smoothing = 0.25f }));
    if (r->how == READ_LATER || r->how == RESULT)
        *later = td_escape(y);
    return td_escape(loss);
}

static td_tensor *wide_step(td_tensors in, void *user)
{
    run *r = user;
    td_tensor *later = NULL, *loss = loss_from(r, in, &later);
    td_backward_with(loss, &(td_backward_opts){ .retain_graph = r->how == RETAINED });
    if (r->how == RETAINED)
        td_backward(loss);
    td_optim_step(r->j.opt);
    return r->how == READ_LATER ? td_add(td_detach(loss), td_mean(td_detach(later), NULL, 0, false)) : r->how == RESULT ? td_sum(td_detach(later), NULL, 0, false) : td_detach(loss);
}

static run make(way how)
{
    run r = { how, { .of = MLP } };
    td_seed(5);
    td_step_set(0);
    r.j.net = td_nn_sequential(td_nn_linear(IN, HIDDEN, NULL), td_nn_tanh(), td_nn_linear(HIDDEN, WIDE, NULL));
    for (size_t i = 0; i < td_parameters(r.j.net).n; i++) {
        TD_NO_GRAD();
        TD_SCOPE();
        td_tensor *p = td_parameters(r.j.net).list[i];
        td_assign(p, td_scale(td_randn(td_shape_of(p), 3, i), 0.1));
    }
    r.j.opt = td_adamw_new(td_parameters(r.j.net), &(td_adamw_opts){ .lr = 3e-3 });
    return r;
}

static td_tensors rows(int s, td_tensor *into[2])
{
    int64_t target[MANY_ROWS];
    for (int i = 0; i < MANY_ROWS; i++)
        target[i] = (31 * i + 7 * s) % WIDE;
    into[0] = td_randn(TD_SHAPE(MANY_ROWS, IN), 5, (uint64_t)s);
    into[1] = td_from(target, TD_SHAPE(MANY_ROWS), TD_I64);
    return (td_tensors){ into, 2 };
}

static void called(way how)
{
    run r = make(how);
    for (int s = 0; s < STEPS; s++) {
        TD_SCOPE();
        td_tensor *in[2];
        want.loss[s] = (float)td_item(wide_step(rows(s, in), &r));
    }
    look(&r.j, &want);
    end(&r.j);
}

static td_graph_figures replayed(way how, const td_capture_opts *opts)
{
    run r = make(how);
    td_graph *g = NULL;
    for (int s = 0; s < STEPS; s++) {
        TD_SCOPE();
        td_tensor *in[2];
        rows(s, in);
        if (g)
            spoil(g);
        else
            g = td_capture(wide_step, &r, (td_tensors){ in, 2 }, opts);
        got.loss[s] = (float)td_item(s ? td_replay(g, (td_tensors){ in, 2 }) : td_graph_result(g));
    }
    look(&r.j, &got);
    td_graph_figures f = td_graph_stats(g);
    td_graph_free(g);
    end(&r.j);
    return f;
}

static void bits(void **state)
{
    (void)state;
    for (way how = 0; how < ALL; how++) {
        called(how);
        replayed(how, NULL);
        expect_same(ways[how]);
        replayed(how, &(td_capture_opts){ .verify = 2 });
        expect_same(ways[how]);
    }
}

static void one_matrix(void **state)
{
    (void)state;
    for (way how = 0; how < ALL; how++) {
        if (!once_is_enough[how])
            continue;
        td_graph_figures f = replayed(how, NULL);
        if (f.planned >= LOGITS * 3 / 2 || f.eager >= LOGITS * 3 / 2 || f.fell)
            fail_msg("%s: planned %lld, eager %lld bytes, of which logits %lld; %lld requests fell to the pool", ways[how], (long long)f.planned,
                     (long long)f.eager, (long long)LOGITS, (long long)f.fell);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bits), TEST(one_matrix),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
