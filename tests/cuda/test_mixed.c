/* tests/cuda/test_mixed.c [or-skip]: 16 bits beside f32 without copies in between, on a device that computes in both: what TD_AUTOCAST leaves as it is gives
 * the bits of what PyTorch's order of casts gives, and no f32 copy of the logits is ever made.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <autograd_impl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <tandem/autograd.h>
#include <tandem/ops.h>
#include <tandem/scope.h>

static const td_dtype halves[] = { TD_BF16, TD_F16 };

static td_tensor *leaf(td_shape shape, uint64_t stream)
{
    td_tensor *x = td_randn(shape, 9, stream);
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return x;
}

static void same(td_tensor *a, td_tensor *b)
{
    const size_t bytes = (size_t)td_numel(a) * td_dtype_size(td_dtype_of(a));
    assert_false(td_error_pending());
    assert_int_equal(td_dtype_of(a), td_dtype_of(b));
    assert_int_equal(td_numel(a), td_numel(b));
    char *p = malloc(2 * bytes + 1);
    assert_int_equal(td_copy_out(a, p, bytes), 0);
    assert_int_equal(td_copy_out(b, p + bytes, bytes), 0);
    assert_memory_equal(p, p + bytes, bytes);
    free(p);
}

/* sum of y times numbers that f16 holds: what arrives at y is not all ones */
static void backward(td_tensor *y)
{
    td_tensor *w = td_cast(td_cast(td_randn(td_shape_of(y), 9, 77), TD_F16), TD_F32);
    td_backward(td_sum(td_mul(td_cast(y, TD_F32), w), NULL, 0, false));
    assert_false(td_error_pending());
}

/* A residual stream: f32 plus what a block made. */
static void residual(void **state)
{
    (void)state;
    for (int h = 0; h < 2; h++)
        for (int swapped = 0; swapped < 2; swapped++)
            for (int64_t n = 1; n < 70; n += 17) {
                TD_SCOPE();
                td_tensor *x = leaf(TD_SHAPE(3, n), 1), *b = leaf(TD_SHAPE(3, n), 2), *x2 = td_detach(x), *b2 = td_detach(b);
                td_requires_grad((td_tensors){ &x2, 1 }, true);
                td_requires_grad((td_tensors){ &b2, 1 }, true);
                td_tensor *low = td_cast(b, halves[h]), *y;
                {
                    TD_AUTOCAST(halves[h]);
                    y = swapped ? td_add(low, x) : td_add(x, low);
                }
                td_tensor *y2 = td_add(x2, td_cast(td_cast(b2, halves[h]), TD_F32));
                same(y, y2);
                backward(y);
                backward(y2);
                same(td_grad(x), td_grad(x2));
                same(td_grad(b), td_grad(b2));
                /* other shapes go on as before */
                TD_AUTOCAST(halves[h]);
                assert_int_equal(td_dtype_of(td_add(td_detach(x), td_cast(td_randn(TD_SHAPE(n), 9, 3), halves[h]))), TD_F32);
                assert_false(td_error_pending());
            }
}

/* Every other operation promotes to f32, and those that want f32 get it: a copy comes first. */
static td_tensor *difference(td_tensor *a, td_tensor *b) { return td_sub(a, b); }
static td_tensor *product(td_tensor *a, td_tensor *b) { return td_mul(a, b); }
static td_tensor *quotient(td_tensor *a, td_tensor *b) { return td_div(a, b); }
static td_tensor *larger(td_tensor *a, td_tensor *b) { return td_maximum(a, b); }
static td_tensor *exponential(td_tensor *a, td_tensor *b) { (void)a; return td_exp(b); }
static td_tensor *likelihood(td_tensor *a, td_tensor *b) { (void)a; return td_softmax(b, -1); }

static void promoted(void **state)
{
    static td_tensor *(*const op[])(td_tensor *, td_tensor *) = { difference, product, quotient, larger, exponential, likelihood };
    (void)state;
    for (size_t i = 0; i < sizeof op / sizeof *op; i++)
        for (int h = 0; h < 2; h++) {
            TD_SCOPE();
            td_tensor *x = leaf(TD_SHAPE(3, 37), 1), *b = leaf(TD_SHAPE(3, 37), 2), *x2 = td_detach(x), *b2 = td_detach(b), *y;
            td_requires_grad((td_tensors){ &x2, 1 }, true);
            td_requires_grad((td_tensors){ &b2, 1 }, true);
            td_tensor *low = td_cast(b, halves[h]);
            {
                TD_AUTOCAST(halves[h]);
                y = op[i](x, low);
            }
            td_tensor *y2 = op[i](x2, td_cast(td_cast(b2, halves[h]), TD_F32));
            same(y, y2);
            backward(y);
            backward(y2);
            same(td_grad(b), td_grad(b2));
            if (td_grad(x2))
                same(td_grad(x), td_grad(x2));
        }
}

/* Outside a region bf16 beside f32 is an error, as ever. */
static void refused(void **state)
{
    (void)state;
    TD_SCOPE();
    td_add(td_randn(TD_SHAPE(3), 9, 1), td_cast(td_randn(TD_SHAPE(3), 9, 1), TD_BF16));
    assert_true(td_error_pending());
    assert_non_null(strstr(td_error_message(), "bf16"));
    td_error_clear();
}

static void norms(void **state)
{
    (void)state;
    static const int64_t width[] = { 1, 3, 4, 8, 33, 64, 100, 768, 1030, 2056, 5000 };
    for (size_t i = 0; i < sizeof width / sizeof *width; i++)
        for (int h = 0; h < 2; h++)
            for (int kind = 0; kind < 4; kind++) {     /* f32 to 16 bits; 16 bits to f32 inside a region; rms norm's two */
                TD_SCOPE();
                const int64_t n = width[i];
                const bool rms = kind & 1, narrow_x = kind & 2;
                td_tensor *x[2], *w[2], *b[2], *y[2];
                for (int k = 0; k < 2; k++) {
                    x[k] = leaf(TD_SHAPE(5, n), 1);
                    w[k] = leaf(TD_SHAPE(n), 2);
                    b[k] = leaf(TD_SHAPE(n), 3);
                    td_tensor *in = narrow_x ? td_cast(x[k], halves[h]) : x[k];
                    if (k == 1) {              /* every copy written out */
                        in = td_cast(in, TD_F32);
                        y[k] = rms ? td_rms_norm(in, w[k], 1e-5) : td_layer_norm(in, w[k], b[k], 1, 1e-5);
                        y[k] = narrow_x ? y[k] : td_cast(y[k], halves[h]);
                    } else if (narrow_x) {
                        TD_AUTOCAST(halves[h]);
                        y[k] = rms ? td_rms_norm(in, w[k], 1e-5) : td_layer_norm(in, w[k], b[k], 1, 1e-5);
                    } else {
                        y[k] = rms ? td_rms_norm_to(in, w[k], 1e-5, halves[h]) : td_layer_norm_to(in, w[k], b[k], 1, 1e-5, halves[h]);
                    }
                }
                same(y[0], y[1]);
                backward(y[0]);
                backward(y[1]);
                same(td_grad(x[0]), td_grad(x[1]));
                same(td_grad(w[0]), td_grad(w[1]));
                if (!rms)
                    same(td_grad(b[0]), td_grad(b[1]));
            }
}

/* The loss of 16-bit logits in f32, its gradient written in 16 bits; classes that are no multiple of 16 bytes. */
static void losses(void **state)
{
    (void)state;
    static const int64_t classes[] = { 2, 7, 8, 64, 333, 2051, 5003 };
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        for (int h = 0; h < 2; h++)
            for (int smooth = 0; smooth < 2; smooth++) {
                TD_SCOPE();
                const int64_t n = classes[i], rows = 37;
                const td_cross_entropy_opts o = { .label_smoothing = smooth ? 0.125f : 0, .has_ignore_index = true, .ignore_index = 1 };
                td_tensor *x[2], *loss[2], *target = td_randint(0, n, TD_SHAPE(rows), 9, 5);
                for (int k = 0; k < 2; k++) {
                    x[k] = leaf(TD_SHAPE(rows, n), 4);
                    td_tensor *low = td_cast(x[k], halves[h]);
                    TD_AUTOCAST(k ? TD_F32 : halves[h]);
                    loss[k] = td_cross_entropy(k ? td_cast(low, TD_F32) : low, target, &o);
                    assert_int_equal(td_dtype_of(loss[k]), TD_F32);
                }
                double a = td_item(loss[0]), b = td_item(loss[1]);
                assert_true(fabs(a - b) <= 1e-6 * fabs(b));
                td_backward(loss[0]);
                td_backward(loss[1]);
                const int64_t all = rows * n;
                float *g = malloc(2 * (size_t)all * sizeof *g);
                assert_int_equal(td_copy_out(td_grad(x[0]), g, (size_t)all * sizeof *g), 0);
                assert_int_equal(td_copy_out(td_grad(x[1]), g + all, (size_t)all * sizeof *g), 0);
                for (int64_t k = 0; k < all; k++) {        /* one unit of 16 bits: f32's last bits may fall on a border */
                    const double unit = h ? 0x1p-10 : 0x1p-7;
                    assert_true(fabs((double)g[k] - (double)g[all + k]) <= unit * fabs((double)g[all + k]) + (h ? 0x1p-24 : 0));
                }
                free(g);
            }
}

/* A GPU counts its own memory, the emulated one's is the host's. */
static td_memory_stats held(bool anew)
{
    td_memory_stats own = td_memory_of(td_device_default());
    const bool counts = own.live_bytes > 0;
    if (anew && counts)
        td_memory_reset_peak_of(td_device_default());
    else if (anew)
        td_memory_reset_peak();
    return counts ? own : td_memory();
}

/* Forward and backward hold the logits and their gradient in 16 bits and no copy in f32. */
static void memory(void **state)
{
    (void)state;
    TD_SCOPE();
    enum { ROWS = 64, CLASSES = 8000 };
    td_tensor *x = leaf(TD_SHAPE(ROWS, 8), 1), *w = leaf(TD_SHAPE(CLASSES, 8), 2), *target = td_randint(0, CLASSES, TD_SHAPE(ROWS), 9, 3);
    const int64_t logits = 2 * ROWS * CLASSES;
    TD_AUTOCAST(TD_BF16);
    td_tensor *y = td_linear(x, w, NULL);
    assert_int_equal(td_dtype_of(y), TD_BF16);
    const int64_t before = held(true).live_bytes;
    td_backward(td_cross_entropy(y, target, NULL));
    assert_false(td_error_pending());
    const int64_t more = held(false).peak_bytes - before;
    assert_true(more > logits && more < 2 * logits);       /* the gradient, the weight's; a copy in f32 would be 2 * logits itself */
}

static int clean(void **state)
{
    (void)state;
    td__scope_close_root();
    return td_memory().live_tensors || td_memory().live_bytes;
}

int main(int argc, char **argv)
{
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    if (td_device_default().kind != TD_CUDA)
        return argc > 1 && strcmp(argv[1], "or-skip") == 0 ? 77 : 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(residual), cmocka_unit_test(promoted), cmocka_unit_test(refused), cmocka_unit_test(norms), cmocka_unit_test(losses), cmocka_unit_test(memory),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
