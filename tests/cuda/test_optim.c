/* tests/cuda/test_optim.c: the kernels of optimizers (rules, norms of gradients, numbers of a step), on the device "cuda" (made up, or a GPU), beside
 * the CPU's, over several steps, at odd sizes, and from addresses that 16-byte loads cannot use.
 *
 * A rule's element sees no sum and no fused multiply-add on either side, so the bits must agree. Sums of squares are in double in
 * another order: to 1e-14 of themselves.
 */
#include "on_device.h"

enum { MOST = 20011, ARRAYS = 6, P = 0, G = 1, STATE = 2, MASTER = 5, STEPS = 3 };
static const int64_t size_of[] = { 0, 1, 3, 31, 257, 1025, MOST };
static const td_dtype dtype_of[] = { TD_F32, TD_F64, TD_F16, TD_BF16 };

/* Numbers where k's kernels read them, until some dozens later; values NULL: gives all of them back. */
static double *number_for(const td_kernels *k, const double *values, int n)
{
    static double *block[64];
    static unsigned next;
    for (unsigned i = 0; !values && i < TD_COUNT(block); i++) {
        if (block[i])
            dev->free(0, block[i]);
        block[i] = NULL;
    }
    if (k == cpu || !values)
        return (double *)values;
    double **at = &block[next++ % TD_COUNT(block)];
    if (*at)
        dev->free(0, *at);                         /* in stream order: what was launched has read it                          */
    return *at = up(values, (size_t)n * sizeof *values);
}

/* ---- twins -------------------------------------------------------------------------------------------------------------------------------------- */

/* The same arrays on the device and on the host: p, g, three numbers of state, a master copy; shift elements from an aligned address */
typedef struct { td_dtype t, state; int64_t n; int shift; char *room[2][ARRAYS]; void *of[2][ARRAYS]; } twins;

static td_dtype dtype_in(const twins *w, int a)
{
    return a < STATE ? w->t : w->state;
}

static size_t bytes_in(const twins *w, int a)
{
    return td_dtype_size(dtype_in(w, a)) * (size_t)w->n;
}

static void make(twins *w, td_dtype t, int64_t n, int shift)
{
    uint64_t state = (uint64_t)(n * 8 + shift + 1);
    *w = (twins){ .t = t, .state = td__is_half(t) ? TD_F32 : t, .n = n, .shift = shift };
    for (int a = 0; a < ARRAYS; a++) {
        const size_t off = (size_t)shift * td_dtype_size(dtype_in(w, a));
        w->room[1][a] = aligned_alloc(64, (bytes_in(w, a) + 2 * 64) / 64 * 64);
        assert_non_null(w->room[1][a]);
        w->of[1][a] = w->room[1][a] + off;
        for (int64_t i = 0; i < n; i++)
            put(dtype_in(w, a), w->of[1][a], i, a < STATE ? number(&state) : 0);
        w->room[0][a] = dev->alloc(0, bytes_in(w, a) + 128);
        assert_non_null(w->room[0][a]);
        w->of[0][a] = w->room[0][a] + off;
    }
    for (int64_t i = 0; i < n; i++)
        put(w->state, w->of[1][MASTER], i, get(t, w->of[1][P], i));
    for (int a = 0; a < ARRAYS; a++)
        into(w->of[0][a], w->of[1][a], bytes_in(w, a));
}

static void next_gradient(twins *w, int step)
{
    uint64_t state = (uint64_t)(w->n + 1000 * step);
    for (int64_t i = 0; i < w->n; i++)
        put(w->t, w->of[1][G], i, number(&state));
    into(w->of[0][G], w->of[1][G], bytes_in(w, G));
}

static void same(const twins *w, const char *what)
{
    for (int a = 0; a < ARRAYS; a++) {
        char *got = malloc(bytes_in(w, a) + 1);
        down(got, w->of[0][a], bytes_in(w, a));
        for (int64_t i = 0; i < w->n; i++) {
            double g = get(dtype_in(w, a), got, i), c = get(dtype_in(w, a), w->of[1][a], i);
            if (memcmp(&g, &c, sizeof g) != 0)
                fail_msg("%s %s, %lld elements: array %d, element %lld is %.17g, expected %.17g", what, td_dtype_name(w->t), (long long)w->n, a,
                         (long long)i, g, c);
        }
        free(got);
    }
}

/* Somebody writes to every third weight; masters know nothing of it. */
static void write_weights(twins *w)
{
    for (int64_t i = 0; i < w->n; i += 3)
        put(w->t, w->of[1][P], i, 3 + (double)(i % 5) / 4);
    into(w->of[0][P], w->of[1][P], bytes_in(w, P));
}

static void drop(twins *w)
{
    for (int a = 0; a < ARRAYS; a++) {
        dev->free(0, w->room[0][a]);
        free(w->room[1][a]);
    }
}

static void close_to(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-14 * fabs(want)))
        fail_msg("%s is %.17g, expected %.17g", what, got, want);
}

/* ---- rules -------------------------------------------------------------------------------------------------------------------------------------- */

enum { RULES = 15 };
enum { PLAIN, ON_DEVICE, STOPPED, MODES };         /* where the numbers of a step are */

/* One step of rule number r */
static const char *step_of(const td_kernels *k, int r, int step, const twins *w, void *const *a, bool master, int mode)
{
    static const char *const names[] = { "sgd", "sgd momentum", "sgd nesterov", "adamw", "adam", "rmsprop", "rmsprop momentum", "rmsprop centered",
                                         "rmsprop both", "adagrad", "lion", "ema", "lars", "lars momentum", "lamb" };
    static const double numbers[] = { 0.25, 0.5, 1, 0 }, norms[] = { 3, 0.7 };
    double bias[] = { 1 - pow(0.9, step + 1), 1 - pow(0.99, step + 1) };
    const td_dtype t = w->t;
    const int64_t n = w->n;
    const double *at = mode == PLAIN ? NULL : number_for(k, numbers, 4), *at_bias = mode == PLAIN ? NULL : number_for(k, bias, 2);
    const double *squares = number_for(k, norms, 2);
    td_step s = { .p = a[P], .g = a[G], .gscale = td__number(0.5), .lr = td__number(0.0625), .master = master ? a[MASTER] : NULL };
    td_number bias1 = td__number(bias[0]), bias2 = td__number(bias[1]);
    if (at) {                                      /* the same numbers, as products */
        s.gscale = (td_number){ 2, at };
        s.lr = (td_number){ 0.125, at + 1 };
        bias1 = (td_number){ 1, at_bias };
        bias2 = (td_number){ 1, at_bias + 1 };
        s.stop = at + (mode == STOPPED ? 2 : 3);
    }
    switch (r) {
    case 0: k->sgd(t, n, &s, NULL, 0, 0, 0.01, false, false); break;
    case 1: k->sgd(t, n, &s, a[2], 0.9, 0.3, 0.01, false, step == 0); break;
    case 2: k->sgd(t, n, &s, a[2], 0.9, 0, 0.01, true, step == 0); break;
    case 3: k->adamw(t, n, &s, a[2], a[3], 0.9, 0.99, 1e-8, 0.1, bias1, bias2); break;
    case 4: k->adam(t, n, &s, a[2], a[3], 0.9, 0.99, 1e-8, 0.1, bias1, bias2); break;
    case 5: k->rmsprop(t, n, &s, a[2], NULL, NULL, 0.9, 1e-8, 0.1, 0); break;
    case 6: k->rmsprop(t, n, &s, a[2], a[3], NULL, 0.9, 1e-8, 0.1, 0.8); break;
    case 7: k->rmsprop(t, n, &s, a[2], NULL, a[4], 0.9, 1e-8, 0.1, 0); break;
    case 8: k->rmsprop(t, n, &s, a[2], a[3], a[4], 0.9, 1e-8, 0.1, 0.8); break;
    case 9: k->adagrad(t, n, &s, a[2], 1e-10, 0.1, step == 0, 0.25); break;
    case 10: k->lion(t, n, &s, a[2], 0.9, 0.99, 0.1); break;
    case 11:
        if (!td__is_half(t) && mode != STOPPED)
            k->ema(t, n, a[P], a[G], 0.9);
        break;
    case 12: k->lars(t, n, &s, NULL, NULL, 0, 0, 0.01); break;
    case 13: k->lars(t, n, &s, a[2], squares, 0.3, 0.9, 0.01); break;
    default: k->lamb(t, n, &s, a[2], a[3], squares, 1e-6, 0.01, bias1, bias2); break;
    }
    return names[r];
}

static void moments_of(const td_kernels *k, twins *w, int side, bool master, double *squares)
{
    const td_step s = { .p = w->of[side][P], .g = w->of[side][G], .master = master ? w->of[side][MASTER] : NULL, .gscale = td__number(0.5) };
    k->lamb_moments(w->t, w->n, &s, w->of[side][2], w->of[side][3], 0.9, 0.99, 1e-6, 0.01, td__number(0.1), td__number(0.01), squares);
}

static void rule_case(td_dtype t, int64_t n, int shift, int r, bool master, int mode)
{
    twins w;
    make(&w, t, n, shift);
    for (int step = 0; step < STEPS; step++) {
        const char *name = NULL;
        next_gradient(&w, step);
        if (step == 1)
            write_weights(&w);
        for (int k = 0; k < 2; k++) {
            double unused[2] = { 0 };
            if (r == RULES - 1)
                moments_of(k ? cpu : gpu, &w, k, master, number_for(k ? cpu : gpu, unused, 2));
            name = step_of(k ? cpu : gpu, r, step, &w, w.of[k], master, mode);
        }
        same(&w, name);
    }
    drop(&w);
}

static void test_rules(void **state)
{
    (void)state;
    for (size_t d = 0; d < 4; d++)
        for (size_t s = 0; s < TD_COUNT(size_of); s++)
            for (int shift = 0; shift < 2; shift++)
                for (int r = 0; r < RULES; r++)
                    if (!shift || size_of[s] != MOST)
                        for (int master = 0; master <= td__is_half(dtype_of[d]); master++)
                            rule_case(dtype_of[d], size_of[s], shift, r, master, (int)(s + (size_t)r) % MODES);
}

/* A step that must not happen writes nothing, on either side; numbers by pointer are the numbers. */
static void test_stop_and_numbers(void **state)
{
    (void)state;
    for (int r = 0; r < RULES; r++)
        for (int k = 0; k < 2; k++) {
            twins w, other;
            make(&w, TD_F32, 257, 0);
            make(&other, TD_F32, 257, 0);
            step_of(k ? cpu : gpu, r, 0, &w, w.of[k], false, STOPPED);
            same(&w, "stopped");                   /* one side has not run at all */
            step_of(k ? cpu : gpu, r, 0, &w, w.of[k], false, ON_DEVICE);
            step_of(cpu, r, 0, &other, other.of[1], false, PLAIN);
            for (int a = 0; a < ARRAYS; a++) {
                float got[257];
                if (k)
                    memcpy(got, w.of[1][a], sizeof got);
                else
                    down(got, w.of[0][a], sizeof got);
                assert_memory_equal(got, other.of[1][a], sizeof got);
            }
            drop(&w);
            drop(&other);
        }
}

/* 16-bit weights and steps far below their last bit: with a master copy they follow f32, without one they never move. */
static void test_master(void **state)
{
    (void)state;
    enum { N = 300, TIMES = 400 };
    for (size_t d = 2; d < 4; d++)
        for (int k = 0; k < 2; k++)
            for (int master = 0; master < 2; master++) {
                twins w, wide;
                make(&w, dtype_of[d], N, 0);
                make(&wide, TD_F32, N, 0);
                for (int64_t i = 0; i < N; i++) {
                    put(w.t, w.of[1][P], i, 1 + (double)(i % 7) / 8);
                    put(w.t, w.of[1][G], i, i % 2 ? 1 : -1);
                    ((float *)w.of[1][MASTER])[i] = ((float *)wide.of[1][P])[i] = (float)get(w.t, w.of[1][P], i);
                    ((float *)wide.of[1][G])[i] = i % 2 ? 1 : -1;
                }
                char first[N * 2], last[N * 2];
                memcpy(first, w.of[1][P], sizeof first);
                for (int a = 0; a < ARRAYS; a++)
                    into(w.of[0][a], w.of[1][a], bytes_in(&w, a));
                for (int step = 1; step <= TIMES; step++) {
                    const td_kernels *kernels = k ? cpu : gpu;
                    td_step s = { .p = w.of[k][P], .g = w.of[k][G], .master = master ? w.of[k][MASTER] : NULL, .gscale = td__number(1),
                                  .lr = td__number(1e-4) };
                    td_step f = { .p = wide.of[1][P], .g = wide.of[1][G], .gscale = td__number(1), .lr = td__number(1e-4) };
                    const td_number b1 = td__number(1 - pow(0.9, step)), b2 = td__number(1 - pow(0.99, step));
                    kernels->adamw(w.t, N, &s, w.of[k][2], w.of[k][3], 0.9, 0.99, 1e-8, 0, b1, b2);
                    cpu->adamw(TD_F32, N, &f, wide.of[1][2], wide.of[1][3], 0.9, 0.99, 1e-8, 0, b1, b2);
                }
                if (k)
                    memcpy(last, w.of[1][P], sizeof last);
                else
                    down(last, w.of[0][P], sizeof last);
                for (int64_t i = 0; i < N; i++) {
                    const double rounding = 2 * (w.t == TD_F16 ? 0x1p-11 : 0x1p-8), f32 = ((float *)wide.of[1][P])[i];
                    assert_true(fabs(f32 - get(w.t, first, i)) > 0.03);
                    if (master)
                        assert_true(fabs(get(w.t, last, i) - f32) <= rounding);
                    else
                        assert_true(get(w.t, last, i) == get(w.t, first, i));
                }
                drop(&w);
                drop(&wide);
            }
}

/* ---- squares, and the numbers between gradients and step ------------------------------------------------------------------------------------------ */

static double squares_of(const td_kernels *k, td_dtype t, int count, const int64_t *n, const void *const *x, bool add)
{
    double sum = 2, *at = number_for(k, &sum, 1);
    k->sumsq(t, count, n, x, at, add);
    if (k == gpu)
        down(&sum, at, sizeof sum);
    return sum;
}

static void test_squares(void **state)
{
    (void)state;
    for (size_t d = 0; d < 4; d++)
        for (size_t s = 0; s < TD_COUNT(size_of); s++)
            for (int shift = 0; shift < 2; shift++) {
                twins w;
                double got[2], want[2], zero[2] = { 0 };
                make(&w, dtype_of[d], size_of[s], shift);
                int64_t n[130];
                const void *x[2][130];
                for (int i = 0; i < 130; i++) {
                    n[i] = i < 2 || w.n <= 257 ? w.n : w.n % 57;
                    x[0][i] = w.of[0][i % 2];
                    x[1][i] = w.of[1][i % 2];
                }
                for (int count = 0; count <= 130; count = count < 2 ? count + 1 : count + 64)
                    for (int add = 0; add < 2; add++)
                        close_to(squares_of(gpu, w.t, count, n, x[0], add), squares_of(cpu, w.t, count, n, x[1], add), "sumsq");
                for (int step = 0; step < STEPS; step++) {
                    double *room = number_for(gpu, zero, 2);
                    next_gradient(&w, step);
                    moments_of(gpu, &w, 0, td__is_half(w.t), room);
                    moments_of(cpu, &w, 1, td__is_half(w.t), want);
                    down(got, room, sizeof got);
                    same(&w, "lamb_moments");
                    close_to(got[0], want[0], "the sum of squares of p");
                    close_to(got[1], want[1], "the sum of squares of the update");
                }
                drop(&w);
            }
    const double bad[] = { 1, NAN, 2 };
    const void *list = number_for(gpu, bad, 3);
    const int64_t three = 3;
    assert_true(isnan(squares_of(gpu, TD_F64, 1, &three, &list, false)));
}

static void test_numbers(void **state)
{
    (void)state;
    static const double squares[] = { 0, 4, 1e6, INFINITY, NAN };
    for (size_t i = 0; i < TD_COUNT(squares); i++)
        for (int k = 0; k < 2; k++) {
            const td_kernels *kernels = k ? cpu : gpu;
            double v[] = { squares[i], 0.5, -1, 0 }, *at = number_for(kernels, v, 4);     /* squares, factor, norm, mark */
            kernels->clip_factor(at, 3, at + 1, at + 2);
            kernels->mark_not_finite(at, at + 3);
            if (!k)
                down(v, at, sizeof v);
            const double norm = sqrt(squares[i]) * 0.5;
            assert_true(isnan(norm) ? isnan(v[2]) : v[2] == norm);
            assert_true(v[1] == (isfinite(norm) && norm > 3 ? 0.5 * (3 / norm) : 0.5));
            assert_true(v[3] == !isfinite(squares[i]));
        }
    for (int k = 0; k < 2; k++) {
        const td_kernels *kernels = k ? cpu : gpu;
        double v[] = { 8, 0, 0.125 }, found[] = { 0, 1, 0, 0, 0, 0x1p127 }, *at = number_for(kernels, v, 3), *f = number_for(kernels, found, 6);
        for (int i = 0; i < 5; i++)                /* 8: good, bad (4), good, good, good (8) */
            kernels->scale_update(at, f + i, 2, 0.5, 3);
        if (!k)
            down(v, at, sizeof v);
        assert_true(v[0] == 8 && v[1] == 0 && v[2] == 0.125);
        for (int i = 0; i < 2; i++) {              /* never beyond f32 */
            kernels->scale_update(f + 5, f, 2, 0.5, 1);
            if (!k)
                down(v, f + 5, sizeof *v);
            assert_true((k ? found[5] : v[0]) == 0x1p127);
            break;
        }
    }
    for (size_t d = 0; d < 4; d++) {
        twins w;
        make(&w, dtype_of[d], 1025, 1);
        const double third[] = { 1.0 / 3 };
        for (int k = 0; k < 2; k++)
            (k ? cpu : gpu)->times(w.t, w.n, w.of[k][P], (td_number){ 0.75, number_for(k ? cpu : gpu, third, 1) });
        same(&w, "times");
        drop(&w);
    }
}

int main(int argc, char **argv)
{
    find_device(argc, argv);
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_rules), cmocka_unit_test(test_stop_and_numbers), cmocka_unit_test(test_master),
                                        cmocka_unit_test(test_squares), cmocka_unit_test(test_numbers) };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    number_for(NULL, NULL, 0);
    return failed;
}
