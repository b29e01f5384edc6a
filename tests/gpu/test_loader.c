/* tests/gpu/test_loader.c: batches on the real device are the rows that were read, over several epochs and without a wait between them.
 */
#include "gpu.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <tandem/data.h>
#include <tandem/ops.h>
#include <cmocka.h>

enum { ROWS = 1000, WIDTH = 50000 };                               /* 200 KB a row                                              */

static int read_row(void *user, int64_t row, void *const *into)
{
    (void)user;
    float *x = into[0];
    for (int i = 0; i < WIDTH; i++)
        x[i] = (float)((row * 7 + i) % 1009);
    *(int64_t *)into[1] = row;
    return 0;
}

/* The sums of each row, taken on the device while the next batches are on their way; compared in the end. */
static void rows_are_whole(void **state)
{
    static const td_field field[] = { { { 1, { WIDTH } }, TD_F32 }, { { 0, { 0 } }, TD_I64 } };
    td_dataset *data = td_dataset_new(&(td_dataset_source){ .rows = ROWS, .field = field, .n_fields = 2, .read = read_row }, NULL);
    td_loader *l = td_loader_new(data, &(td_loader_opts){ .batch = 32, .shuffle = true, .seed = 9, .threads = 4 });
    {
        TD_SCOPE();
        td_tensor *sums[2 * 32], *rows[2 * 32];
        int n = 0;
        td_batch b;
        for (int e = 0; e < 2; e++)
            while (td_loader_next(l, &b)) {
                assert_int_equal(td_device_of(b.x).kind, TD_CUDA);
                sums[n] = td_sum(b.x, (const int[]){ 1 }, 1, false);
                rows[n++] = td_add(b.y, td_zeros(TD_SHAPE(b.rows), TD_I64));
            }
        assert_int_equal(td_error_pending(), 0);
        assert_int_equal(n, 2 * td_loader_batches(l));
        td_loader_free(l);                                         /* before the device is done                                 */
        for (int k = 0; k < n; k++) {
            float sum[32];
            int64_t row[32], count = td_numel(rows[k]);
            assert_int_equal(td_copy_out(sums[k], sum, (size_t)count * sizeof *sum), 0);
            assert_int_equal(td_copy_out(rows[k], row, (size_t)count * sizeof *row), 0);
            for (int64_t r = 0; r < count; r++) {
                double expected = 0;
                for (int i = 0; i < WIDTH; i++)
                    expected += (double)((row[r] * 7 + i) % 1009);
                assert_true(sum[r] > expected * (1 - 1e-5) && sum[r] < expected * (1 + 1e-5));
            }
        }
    }
    assert_int_equal(td_memory_of(td_device_default()).part[TD_MEMORY_DATA].live_bytes, 0);
    assert_int_equal(td_memory().live_tensors, 0);
}

int main(void)
{
    need_gpu();
    const struct CMUnitTest tests[] = { cmocka_unit_test(rows_are_whole) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
