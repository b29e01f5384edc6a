/* tests/cuda/test_blas.c: plugins/cuda/blas*.c on the fake cuBLASLt (fake_blaslt.c): the cases that a real GPU is held to, the choice of
 * algorithms by advice, by measuring and from a file, and the sentences of what goes wrong.
 */
#include "gemm_cases.h"
#include "fake_blaslt.h"
#include "../../plugins/cuda/cuda_impl.h"
#include <stdio.h>
#include <unistd.h>

/* ---- the neighbours --------------------------------------------------------------------------------------------------------------------------- */
static int scratches;
static const char *launched;
cudaStream_t td__cuda_stream(void) { return NULL; }
void  td__cuda_launched(const char *row) { launched = row; }
int   td__cuda_processors(void) { return 132; }
void *td__cuda_scratch(size_t bytes) { scratches++; return aligned_alloc(512, (bytes + 511) / 512 * 512); }
void  td__cuda_scratch_free(void *block) { scratches--; free(block); }

static int64_t place(const td_loop *l, int64_t i, int operand)
{
    int64_t at = 0;
    for (int d = l->ndim - 1; d >= 0; i /= l->dim[d], d--)
        at += i % l->dim[d] * l->stride[operand][d];
    return at;
}
static int64_t count_of(const td_loop *l)
{
    int64_t n = 1;
    for (int d = 0; d < l->ndim; d++)
        n *= l->dim[d];
    return n;
}
static void fill(const td_loop *l, td_dtype t, void *out, double value)
{
    for (int64_t i = 0; i < count_of(l); i++)
        td__element_put(t, (char *)out + place(l, i, 0) * (int64_t)td_dtype_size(t), value);
}
static void scale(const td_loop *l, td_dtype t, void *out, const void *x, double factor, double term, bool add)
{
    assert_false(add);
    for (int64_t i = 0; i < count_of(l); i++)
        td__element_put(t, (char *)out + place(l, i, 0) * (int64_t)td_dtype_size(t),
                        factor * td__element_get(t, (const char *)x + place(l, i, 1) * (int64_t)td_dtype_size(t)) + term);
}
#define ROW(row) extern __typeof__(*((td_kernels *)0)->row) td__cuda_##row;
ROW(gemm) ROW(gemm_batched) ROW(gemm_bias) ROW(gemm_gelu_grad) ROW(gemm_sums)
const td_kernels td__cuda_kernels = { .name = "cuda", .fill = fill, .scale = scale, .gemm = td__cuda_gemm, .gemm_batched = td__cuda_gemm_batched,
                                      .gemm_bias = td__cuda_gemm_bias, .gemm_gelu_grad = td__cuda_gemm_gelu_grad, .gemm_sums = td__cuda_gemm_sums };

static void *take(int index, size_t bytes) { return aligned_alloc(512, (bytes / 512 + 1) * 512); }
static void give(int index, void *block) { free(block); }
static int copy(int index, void *to, bool to_host, const void *from, bool from_host, size_t bytes) { memmove(to, from, bytes); return 0; }
static const td_device_ops made_up = { .name = "cuda", .kind = TD_CUDA, .alloc = take, .free = give, .copy = copy, .kernels = &td__cuda_kernels };

/* ---- a process per setting: the library is opened once ------------------------------------------------------------------------------------------ */
static float a[64 * 64], b[64 * 64], c[64 * 64] __attribute__((aligned(256)));
static void square(double beta)
{
    td__cuda_gemm(TD_F32, false, false, 64, 64, 64, 1, a, 64, b, 64, beta, c, 64);
}

static void expect_error(int code, const char *part)
{
    assert_int_equal(td_error_pending(), code);
    if (!strstr(td_error_message(), part))
        fail_msg("\"%s\" is not in \"%s\"", part, td_error_message());
    td_error_clear();
}

static void advised(void **state)
{
    fake_blas.algorithms = 4;
    square(0);
    square(0);
    assert_int_equal(fake_blas.advices, 1);
    assert_int_equal(fake_blas.products, 2);
    assert_int_equal(fake_blas.last, 0);
    assert_int_equal(fake_blas.waits, 0);
    assert_string_equal(launched, "gemm");
    td_allow_tf32(true);                               /* another plan, and 10 bits                                                */
    a[0] = 1 + 0x1p-20f, b[0] = 1;
    square(0);
    assert_true(fake_blas.advices == 2 && c[0] == 1);
    td_allow_tf32(false);
    square(0);
    assert_true(fake_blas.advices == 2 && c[0] == 1 + 0x1p-20f);
    a[0] = b[0] = 0;
}

static void sentences(void **state)
{
    fake_blas.broken = 0;
    square(0);
    expect_error(TD_ERR_DEVICE, "a matrix product cannot be started: cuBLASLt: some status (CUBLAS_STATUS_SOME), for a product of (64,64) and (64,64) in f32 on cuda:0");
    fake_blas.broken = -1;
    td__cuda_gemm(TD_F32, false, false, 64, 64, 64, 1, c, 64, b, 64, 0, c, 64);      /* the fake must be able to refuse            */
    expect_error(TD_ERR_DEVICE, "a result in an operand (CUBLAS_STATUS_INVALID_VALUE)");
    td__cuda_gemm_batched(TD_F32, false, false, 2, 8, 8, 8, 1, a, 8, 64, b, 8, 64, 0, c, 8, 63);
    expect_error(TD_ERR_DEVICE, "results of a batch that overlap");
}

static void lacking(void **state)
{
    fake_blas.no_epilogues = true;
    assert_false(td__cuda_gemm_bias(TD_F32, false, false, 40, 40, 40, a, 40, b, 40, c, false, NULL, c + 64));
    fake_blas.no_epilogues = false;                    /* remembered                                                              */
    assert_false(td__cuda_gemm_bias(TD_F32, false, false, 40, 40, 40, a, 40, b, 40, c, false, NULL, c + 64));
    assert_int_equal(td_error_pending(), 0);
}

/* One plan serves calls with other biases, other matrices to keep, and other sums. */
static void pointers(void **state)
{
    enum { N = 16 };
    static float x[N * N] __attribute__((aligned(256))), other[4][N * N] __attribute__((aligned(256))), y[N * N] __attribute__((aligned(256)));
    for (int i = 0; i < N * N; i++)
        x[i] = i % (N + 1) == 0, other[0][i] = 3, other[1][i] = 5;
    const int advices = fake_blas.advices;
    assert_false(td__cuda_gemm_bias(TD_F32, false, false, N, N, N, x, N, x, N, other[0], true, other[2], y));
    td_allow_tf32(true);                               /* else f32's gelu is ours                                                 */
    for (int round = 0; round < 2; round++) {
        assert_true(td__cuda_gemm_bias(TD_F32, false, false, N, N, N, x, N, x, N, other[round], true, other[2 + round], y));
        assert_true(fabs((double)other[2 + round][1] - (round ? 5 : 3)) < 1e-6);
    }
    td_allow_tf32(false);
    for (int round = 0; round < 2; round++) {
        assert_true(td__cuda_gemm_sums(TD_F32, false, false, N, N, N, x, N, x, N, 0, y, other[round], false));
        assert_true(other[round][3] == 1);
    }
    assert_int_equal(fake_blas.advices - advices, 2);
}

/* many shapes: plans are forgotten, and made anew */
static void many(void **state)
{
    for (int64_t m = 1; m <= 64; m++)
        for (int64_t n = 1; n <= 64; n++)
            for (int64_t k = 1; k <= 3; k++)
                td__cuda_gemm(TD_F32, false, false, m, n, k, 1, a, k, b, n, 0, c, n);
    assert_int_equal(td_error_pending(), 0);
}

/* test_blas measure FILE: the second is fastest, the third cannot run, the fourth is as fast; then nothing is measured */
static int measured(const char *path)
{
    setenv("TANDEM_GEMM", "measure", 1);
    setenv("TANDEM_GEMM_FILE", path, 1);
    fake_blas.algorithms = 4;
    fake_blas.broken = 2;
    memcpy(fake_blas.ms, (double[]){ 3, 1, 0.1, 1 }, 4 * sizeof(double));
    for (int i = 0; i < 64 * 64; i++)
        a[i] = b[i] = (float)(i % 7) - 3, c[i] = 1;
    square(1);                                         /* added to once, however often it was timed                                */
    float sum = 1;
    for (int l = 0; l < 64; l++)
        sum += a[l] * b[l * 64];
    bool well = c[0] == sum && fake_blas.last == 1 && fake_blas.waits > 4 && scratches == 1;          /* the workspace */
    const int waits = fake_blas.waits;
    square(0);
    well = well && fake_blas.waits > waits && fake_blas.last == 1;
    const int more = fake_blas.waits;
    square(0);
    square(1);
    fake_blas.capturing = true;                        /* no waiting then: the first                                               */
    td__cuda_gemm(TD_F32, true, false, 64, 64, 64, 1, a, 64, b, 64, 0, c, 64);
    well = well && fake_blas.waits == more && fake_blas.last == 0 && !td_error_pending();
    fake_blas.capturing = false;
    if (!well)
        printf("last %d, waits %d, %d, %d, c %g, expected %g, %s\n", fake_blas.last, waits, more, fake_blas.waits, (double)c[0], (double)sum, td_error_message());
    return !well;
}

/* test_blas again FILE: what stands there, without measuring; another release's lines are passed over */
static int again(const char *path, size_t release, int expected)
{
    setenv("TANDEM_GEMM_FILE", path, 1);
    fake_blas.version = release;
    fake_blas.algorithms = 4;
    square(0);
    const bool well = fake_blas.last == expected && fake_blas.waits == 0 && !td_error_pending();
    if (!well)
        printf("last %d, expected %d, %s\n", fake_blas.last, expected, td_error_message());
    return !well;
}

static int refused(const char *name, const char *value, const char *sentence)
{
    setenv(name, value, 1);
    square(0);
    const bool well = td_error_pending() && strstr(td_error_message(), sentence);
    if (!well)
        printf("\"%s\", expected \"%s\"\n", td_error_message(), sentence);
    return !well || fake_blas.products;
}

static int file_round(const char *self)
{
    char path[] = "/tmp/tandem-gemm-XXXXXX", command[600];
    const int fd = mkstemp(path);
    int bad = fd < 0;
    unlink(path);
    static const char *const steps[] = { "measure", "again", "other", "none" };
    for (int i = 0; i < 4 && !bad; i++) {
        if (i == 3)
            unlink(path);
        snprintf(command, sizeof command, "'%s' %s %s", self, steps[i], path);
        if (system(command) != 0)
            printf("%s failed\n", steps[i]), bad = 1;
    }
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    if (f)
        fclose(f);
    f = fopen(path, "w");
    if (f) {
        fputs("# a comment\n130002 132 : 1 2 3\n", f);
        fclose(f);
        snprintf(command, sizeof command, "'%s' broken %s", self, path);
        bad |= system(command) != 0;
        unlink(path);
    }
    snprintf(command, sizeof command, "'%s' unknown fast", self);
    return bad || system(command) != 0;
}

int main(int argc, char **argv)
{
    td_errors(TD_ERRORS_RETURN);
    if (argc > 2) {
        const char *what = argv[1];
        return strcmp(what, "measure") == 0  ? measured(argv[2])
               : strcmp(what, "again") == 0  ? again(argv[2], 130002, 1)
               : strcmp(what, "other") == 0  ? again(argv[2], 130100, 0)
               : strcmp(what, "none") == 0   ? refused("TANDEM_GEMM_FILE", argv[2], "cannot be read: No such file or directory")
               : strcmp(what, "broken") == 0 ? refused("TANDEM_GEMM_FILE", argv[2], "line 2 of ")
                                             : refused("TANDEM_GEMM", argv[2], "TANDEM_GEMM is \"fast\": expected heuristic or measure");
    }
    ops = &made_up;
    all_there = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(advised), cmocka_unit_test(sentences), cmocka_unit_test(lacking), cmocka_unit_test(pointers), GEMM_CASES, cmocka_unit_test(many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) || file_round(argv[0]);
}
