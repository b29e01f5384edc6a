/* tests/cuda/test_trap.c: index checks that nobody waits for, on the emulated device, which shows them as late as it is told to. The sentences are
 * the CPU's, to the letter, with the module path; weights are not stepped by what a bad index made, also before anybody knows; afterwards the
 * device goes on as if the bad batch had not been.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <autograd_impl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem/autograd.h>
#include <tandem/ops.h>
#include <tandem/optim.h>
#include <tandem/scope.h>

extern int td__emulated_late;                  /* so many looks see nothing */
static const td_device cpu = { TD_CPU, 0 }, cuda = { TD_CUDA, 0 };

static td_tensor *whole(td_shape shape, const int64_t *v, td_device d)
{
    td_tensor *x = td__scoped_tensor(td__tensor_new(shape, TD_I64, cpu));      /* nothing is read on the way, so nobody looks */
    td_copy_in(x, v, (size_t)td_numel(x) * sizeof *v);
    return td_to(x, d);
}

static td_tensor *ramp(td_shape shape, td_device d)
{
    return td_to(td_reshape(td_cast(td_scale(td_arange(td_numel(td_zeros(shape, TD_BOOL)), TD_F32), 0.125), TD_F32), shape), d);
}

/* ---- the sentence ---------------------------------------------------------------------------------------------------------------------- */
static const int64_t ids[] = { 1, 0, 3, 2, 50, -7 };

static td_tensor *one(int which, td_device d)
{
    static const int64_t grid[] = { 0, 1, 1, 9, -1, 0 };
    switch (which) {
    case 0: return td_embedding(ramp(TD_SHAPE(7, 4), d), whole(TD_SHAPE(2, 3), ids, d), NULL);
    case 1: return td_index_select(ramp(TD_SHAPE(3, 7), d), 1, whole(TD_SHAPE(6), ids, d));
    case 2: return td_gather(ramp(TD_SHAPE(2, 3), d), 0, whole(TD_SHAPE(2, 3), grid, d));
    case 3: return td_cross_entropy(ramp(TD_SHAPE(6, 5), d), whole(TD_SHAPE(6), ids, d), NULL);
    case 4: return td_cross_entropy(ramp(TD_SHAPE(6, 5), d), whole(TD_SHAPE(6), ids, d), &(td_cross_entropy_opts){ .has_ignore_index = true, .ignore_index = 50 });
    case 5: return td_nll(ramp(TD_SHAPE(6, 5), d), whole(TD_SHAPE(6), ids, d), &(td_nll_opts){ .has_ignore_index = true, .ignore_index = -7 });
    default: return td_embedding(td_to(td_zeros(TD_SHAPE(0, 4), TD_F32), d), whole(TD_SHAPE(1), ids, d), NULL);
    }
}

/* Without the line: where a test links the library into itself, functions of the library count as its callers. */
static const char *cut(char *text)
{
    char *at = NULL;
    for (char *p = text; (p = strstr(p, " at ")); p++)
        at = p;
    assert_non_null(at);
    *at = '\0';
    return text;
}

static void sentences(void **state)
{
    (void)state;
    for (int which = 0; which < 7; which++)
        for (int module = 0; module < 2; module++) {
            char want[1024];
            td_scope scope = td__scope_begin_labelled(module ? "net.layer3" : NULL);
            td_device d = cpu;
            for (int on = 0; on < 2; on++, d = cuda) {
                td__emulated_late = 0;
                td_tensor *y = one(which, d);
                if (on == 0) {
                    assert_true(td_error_pending());
                    assert_true(td_is_poisoned(y));
                    snprintf(want, sizeof want, "%s", td_error_message());
                    cut(want);
                    assert_int_equal(strstr(want, "net.layer3") != NULL, module);
                    td_error_clear();
                } else {
                    assert_false(td_error_pending());              /* nobody has looked */
                    assert_false(td_is_poisoned(y));
                    assert_true(td_synchronize(cuda) < 0);
                    char got[1024];
                    snprintf(got, sizeof got, "%s", td_error_message());
                    assert_non_null(strstr(got, " at ops_"));     /* not where it was found */
                    assert_string_equal(cut(got), want);
                    td_error_clear();
                    assert_int_equal(td_synchronize(cuda), 0);     /* told once */
                }
            }
            td_scope_end(&scope);
        }
}

/* The first operation that met one, whatever came after it; and its first place. */
static void the_first(void **state)
{
    (void)state;
    TD_SCOPE();
    static const int64_t many[] = { 0, 8, 9, 10, -1, 3 };
    td_tensor *w = ramp(TD_SHAPE(7, 4), cuda);
    td_embedding(w, whole(TD_SHAPE(6), many, cuda), NULL);
    td_cross_entropy(ramp(TD_SHAPE(6, 5), cuda), whole(TD_SHAPE(6), ids, cuda), NULL);
    assert_true(td_synchronize(cuda) < 0);
    assert_non_null(strstr(td_error_message(), "td_embedding: the id at position (1) is 8; the weight (7,4) has rows 0 to 6"));
    td_error_clear();
    double v = td_item(td_sum(td_embedding(w, whole(TD_SHAPE(6), many, cuda), NULL), NULL, 0, false));
    assert_true(v != v);                       /* what is read of garbage is NaN */
    assert_true(td_error_pending());
    td_error_clear();
}

/* ---- training -------------------------------------------------------------------------------------------------------------------------- */
typedef struct { td_tensor *table, *head; td_optim *opt; } model;

static model made(void)
{
    model m = { td_keep(ramp(TD_SHAPE(7, 4), cuda)), td_keep(ramp(TD_SHAPE(5, 4), cuda)), NULL };
    td_requires_grad((td_tensors){ (td_tensor *[]){ m.table, m.head }, 2 }, true);
    m.opt = td_adamw_new((td_tensors){ (td_tensor *[]){ m.table, m.head }, 2 }, &(td_adamw_opts){ .lr = 0.1f });
    return m;
}

static void gone(model m)
{
    td_optim_free(m.opt);
    td_release(m.table);
    td_release(m.head);
}

static int step(model m, const int64_t *x, const int64_t *y)
{
    TD_SCOPE();
    td_backward(td_cross_entropy(td_linear(td_embedding(m.table, whole(TD_SHAPE(3), x, cuda), NULL), m.head, NULL), whole(TD_SHAPE(3), y, cuda), NULL));
    return td_optim_step(m.opt);
}

static void weights(model m, float *into)
{
    assert_int_equal(td_copy_out(m.table, into, 28 * sizeof *into), 0);
    assert_int_equal(td_copy_out(m.head, into + 28, 20 * sizeof *into), 0);
}

static const int64_t good_x[] = { 1, 2, 6 }, good_y[] = { 0, 4, 2 }, bad_x[] = { 1, 77, 6 }, bad_y[] = { 0, 5, 2 };

/* good, bad, (good …) until somebody notices, good: the weights are those of the good ones before and after. Noticed after `late` looks. */
static void training(void **state)
{
    (void)state;
    for (int late = 0; late < 12; late++)
        for (int target = 0; target < 2; target++) {
            float want[48], got[48];
            TD_SCOPE();
            td__emulated_late = 0;
            model m = made(), n = made();
            assert_int_equal(step(m, good_x, good_y), 0);
            weights(n, want);
            assert_int_equal(step(n, good_x, good_y), 0);
            weights(n, got);
            assert_memory_not_equal(got, want, sizeof want);
            td__emulated_late = late;
            int lost = 0, code = step(m, target ? good_x : bad_x, target ? bad_y : good_y);
            for (; !code; lost++)              /* nobody knows yet; nothing is written */
                code = step(m, good_x, good_y);
            assert_true(code < 0 && td_error_pending());
            assert_non_null(strstr(td_error_message(), target ? "target of row 1 is 5" : "the id at position (1) is 77"));
            assert_true(late == 0 || lost <= late);
            td__emulated_late = 0;
            td_error_clear();
            weights(m, got);
            weights(n, want);
            assert_memory_equal(got, want, sizeof want);
            assert_int_equal(step(m, good_x, good_y), 0);
            weights(m, got);
            assert_memory_not_equal(got, want, sizeof want);
            for (int i = 0; i < 48; i++)
                assert_true(got[i] == got[i] && got[i] < 100 && got[i] > -100);
            gone(m);
            gone(n);
        }
}

/* Gradients that a bad batch began are forgotten, those of the good one after it are its own: SGD keeps no count of steps. */
static void micro_batches(void **state)
{
    (void)state;
    float want[48], got[48];
    TD_SCOPE();
    model m = made(), n = made();
    td_optim_free(m.opt);
    td_optim_free(n.opt);
    m.opt = td_sgd_new((td_tensors){ (td_tensor *[]){ m.table, m.head }, 2 }, &(td_sgd_opts){ .lr = 0.1f });
    n.opt = td_sgd_new((td_tensors){ (td_tensor *[]){ n.table, n.head }, 2 }, &(td_sgd_opts){ .lr = 0.1f });
    td__emulated_late = 1000;
    td_backward(td_cross_entropy(td_linear(td_embedding(m.table, whole(TD_SHAPE(3), bad_x, cuda), NULL), m.head, NULL), whole(TD_SHAPE(3), good_y, cuda), NULL));
    assert_false(td_error_pending());
    assert_true(td_synchronize(cuda) < 0);     /* and before the step */
    td_error_clear();
    td__emulated_late = 0;
    assert_int_equal(step(m, good_x, good_y), 0);
    assert_int_equal(step(n, good_x, good_y), 0);
    weights(m, got);
    weights(n, want);
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(step(n, good_x, good_y), 0);
    weights(n, want);
    assert_memory_not_equal(got, want, sizeof want);
    gone(m);
    gone(n);
}

/* More checks than there are places: the oldest are forgotten, the sentence says so, and numbers stay apart. */
static void many_checks(void **state)
{
    (void)state;
    TD_SCOPE();
    for (int64_t v = 1; v < 1500; v++) {
        TD_SCOPE();
        const int64_t zero = 0, bad = v;
        const bool last = v == 1499 || v == 700;
        td_embedding(td_to(td_zeros(TD_SHAPE(v, 1), TD_F32), cuda), whole(TD_SHAPE(1), last ? &bad : &zero, cuda), NULL);
        if (!last)
            continue;
        char want[64];
        snprintf(want, sizeof want, "is %lld; the weight (%lld,1)", (long long)v, (long long)v);
        assert_true(td_synchronize(cuda) < 0);
        assert_non_null(strstr(td_error_message(), want));
        td_error_clear();
    }
}

static int clean(void **state)
{
    (void)state;
    td__scope_close_root();
    return td_memory().live_tensors || td_memory().live_bytes;
}

int main(void)
{
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sentences), cmocka_unit_test(the_first), cmocka_unit_test(training), cmocka_unit_test(micro_batches), cmocka_unit_test(many_checks),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
