/* tests/tensor/test_tensor.c: handles: constructors, looking, views, ownership, relocation, writing in place, and what is said on misuse. */
#include "tensor_test.h"
#include <pthread.h>

static td_tensor *view(td_tensor *x, td_shape shape, const int64_t *stride, int64_t offset)
{
    return td__scoped_tensor(td__tensor_view(x, shape, stride, offset));
}

static void constructors(void **state)
{
    (void)state;
    TD_SCOPE();
    for (size_t t = 0; t < TD_COUNT(all_dtypes); t++) {
        td_dtype d = all_dtypes[t];
        td_tensor *z = td_zeros(TD_SHAPE(3, 5), d), *o = td_ones(TD_SHAPE(7), d), *f = td_full(TD_SCALAR, d, 2.0), *a = td_arange(200, d);
        assert_int_equal(td_numel(z), 15);
        assert_int_equal(td_dtype_of(z), d);
        for (int i = 0; i < 15; i++)
            assert_true(td_at(z, TD_SHAPE(i / 5, i % 5)) == 0);
        for (int i = 0; i < 7; i++)
            assert_true(td_at(o, TD_SHAPE(i)) == 1);
        assert_true(td_item(f) == (d == TD_BOOL ? 1 : 2));
        for (int i = 0; i < 200; i++)
            assert_true(td_at(a, TD_SHAPE(i)) == (d == TD_BOOL ? i != 0 : i));
        assert_int_equal(td_numel(td_zeros(TD_SHAPE(0, 3), d)), 0);
        assert_int_equal(td_numel(td_arange(0, d)), 0);
    }
    float data[6] = { 1, 2, 3, 4, 5, 6 };
    td_tensor *x = td_from(data, TD_SHAPE(2, 3), TD_F32);
    data[4] = 50;
    assert_true(td_at(x, TD_SHAPE(1, 1)) == 5);
    assert_memory_equal(td_data(x), ((float[]){ 1, 2, 3, 4, 5, 6 }), 24);
    assert_int_equal((uintptr_t)td_data(x) % 64, 0);
    assert_int_equal(td_dim(x, 0), 2);
    assert_int_equal(td_dim(x, -1), 3);
    assert_true(td_shape_of(x).ndim == 2 && td_is_contiguous(x) && !td_is_poisoned(x));
    assert_int_equal(td_device_of(x).kind, TD_CPU);
    assert_true(td_to(x, (td_device){ TD_CPU, 0 }) == x);
    assert_true(td_to(x, (td_device){ TD_DEFAULT, 0 }) == x);
    assert_false(td_is_poisoned(td_from(NULL, TD_SHAPE(0), TD_F32)));
}

static void misuse_is_one_sentence(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(2, 3), TD_F32), *poison;
    float six[6];
    assert_true(isnan(td_item(x)));
    expect_error(TD_ERR_SHAPE, "td_item: one element is needed, but shape (2,3) has 6");
    assert_true(isnan(td_at(x, TD_SHAPE(1))));
    expect_error(TD_ERR_SHAPE, "td_at: an index of 1 numbers does not fit shape (2,3)");
    assert_true(isnan(td_at(x, TD_SHAPE(1, 3))));
    expect_error(TD_ERR_SHAPE, "td_at: index (1,3) is outside shape (2,3) at dimension 1");
    assert_int_equal(td_dim(x, 2), 0);
    expect_error(TD_ERR_SHAPE, "td_dim: dimension 2 is outside -2 to 1");
    assert_true(td_copy_out(x, six, 20) < 0);
    expect_error(TD_ERR_ARGUMENT, "td_copy_out: shape (2,3) of f32 is 24 bytes, got 20");
    assert_true(td_copy_in(x, six, 28) < 0);
    expect_error(TD_ERR_ARGUMENT, "td_copy_in: shape (2,3) of f32 is 24 bytes, got 28");
    assert_true(td_copy_in(x, NULL, 24) < 0);
    expect_error(TD_ERR_ARGUMENT, "td_copy_in: the host memory is NULL");
    td_tensor *t = view(x, TD_SHAPE(3, 2), (int64_t[]){ 1, 3 }, 0);
    assert_null(td_data(t));
    expect_error(TD_ERR_SHAPE, "td_data: the view of shape (3,2) is not contiguous");
    assert_true(td_copy_in(t, six, 24) < 0);
    expect_error(TD_ERR_SHAPE, "td_copy_in: the view of shape (3,2) is not contiguous");
    assert_true(td_assign(x, td_zeros(TD_SHAPE(2, 2), TD_F32)) < 0);
    expect_error(TD_ERR_SHAPE, "td_assign: a value of shape (2,2) does not broadcast into shape (2,3)");
    assert_true(td_assign(td_zeros(TD_SCALAR, TD_F32), x) < 0);
    expect_error(TD_ERR_SHAPE, "td_assign: a value of shape (2,3) does not broadcast into shape ()");
    td_tensor *wide = view(x, TD_SHAPE(4, 2, 3), (int64_t[]){ 0, 3, 1 }, 0);
    assert_true(td_fill(wide, 1) < 0);
    expect_error(TD_ERR_SHAPE, "td_fill: the view of shape (4,2,3) repeats its elements along dimension 0");
    poison = td_from(NULL, TD_SHAPE(2), TD_F32);
    assert_true(td_is_poisoned(poison));
    expect_error(TD_ERR_ARGUMENT, "td_from: data is NULL, but shape (2) has elements");
    assert_true(td_is_poisoned(td_arange(-1, TD_F32)));
    expect_error(TD_ERR_SHAPE, "td_arange: shape (-1)");
    assert_true(td_is_poisoned(td_randint(3, 3, TD_SHAPE(2), 0, 0)));
    expect_error(TD_ERR_ARGUMENT, "td_randint: the range [3, 3) is empty");
    assert_true(isnan(td_item(poison)));
    expect_error(TD_ERR_STATE, "td_item: the tensor is the poisoned result of an earlier error");
    assert_true(td_assign(x, poison) < 0);
    expect_error(TD_ERR_STATE, "td_assign: the tensor is the poisoned");
    assert_true(isnan(td_item(NULL)));
    expect_error(TD_ERR_ARGUMENT, "td_item: the tensor is NULL");
    assert_true(td_keep(poison) == poison && td_escape(poison) == poison && td_to(poison, td_device_default()) == poison);
    expect_error(TD_ERR_STATE, "td_to: the tensor is the poisoned");
    td_release(poison);
    assert_int_equal(td_shape_of(poison).ndim, 0);
    td_release(x);
    expect_error(TD_ERR_STATE, "td_release: the tensor of shape (2,3) is not kept");
    assert_true(td_at(x, TD_SHAPE(0, 0)) == 0);
}

static void scopes_own(void **state)
{
    (void)state;
    int64_t before = td_memory().live_tensors;
    td_tensor *kept, *escaped;
    {
        TD_SCOPE();
        {
            TD_SCOPE();
            td_ones(TD_SHAPE(4), TD_F32);
            kept = td_keep(td_full(TD_SHAPE(4), TD_F32, 3));
            escaped = td_escape(td_full(TD_SHAPE(4), TD_F32, 4));
            assert_int_equal(td_memory().live_tensors, before + 3);
        }
        assert_int_equal(td_memory().live_tensors, before + 2);
        assert_true(td_at(escaped, TD_SHAPE(3)) == 4);
    }
    assert_int_equal(td_memory().live_tensors, before + 1);
    assert_true(td_at(kept, TD_SHAPE(3)) == 3);
    assert_true(td_keep(kept) == kept);            /* twice kept, twice released */
    td_release(kept);
    assert_true(td_at(kept, TD_SHAPE(0)) == 3);
    td_release(kept);
    assert_int_equal(td_memory().live_tensors, before);
}

static void releasing_in_the_scope(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_keep(td_ones(TD_SHAPE(2), TD_F32));
    td_tensor *v = view(x, TD_SHAPE(1), (int64_t[]){ 1 }, 1);
    td_release(x);                                  /* the view holds the storage */
    assert_true(td_item(v) == 1);
    td__tensor_ref(v);
    assert_true(td__scoped_tensor(v) == v);         /* already in a scope: only the extra reference goes */
    assert_int_equal(v->refs, 1);
}

static void *in_another_thread(void *user)
{
    td_tensor *x = td_ones(TD_SHAPE(3), TD_F32);    /* dies with the thread's root scope */
    (void)x;
    td_tensor **out = user;
    *out = td_keep(td_ones(TD_SHAPE(3), TD_F32));
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    td_tensor *x = NULL;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, in_another_thread, &x), 0);
    pthread_join(thread, NULL);
    assert_int_equal(td_memory().live_tensors, 1);
    assert_true(td_at(x, TD_SHAPE(2)) == 1);
    td_release(x);
}

static void views(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_arange(24, TD_I32);
    td_tensor *t = view(x, TD_SHAPE(4, 3, 2), (int64_t[]){ 1, 8, 4 }, 0);
    int32_t got[24];
    assert_false(td_is_contiguous(t));
    assert_int_equal(td_copy_out(t, got, sizeof got), 0);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 2; k++) {
                assert_int_equal(got[(i * 3 + j) * 2 + k], i + 8 * j + 4 * k);
                assert_true(td_at(t, TD_SHAPE(i, j, k)) == i + 8 * j + 4 * k);
            }
    td_tensor *narrow = view(x, TD_SHAPE(3, 2), (int64_t[]){ 8, 1 }, 5);
    uint32_t version = x->storage->version;
    assert_int_equal(td_fill(narrow, -1), 0);
    assert_int_equal(x->storage->version, version + 1);
    for (int i = 0; i < 24; i++)
        assert_true(td_at(x, TD_SHAPE(i)) == (i % 8 == 5 || i % 8 == 6 ? -1 : i));
}

static void assigning(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(3, 4), TD_F32), *row = td_arange(4, TD_I64);
    uint32_t version = x->storage->version;
    assert_int_equal(td_assign(x, row), 0);
    assert_int_equal(x->storage->version, version + 1);
    for (int i = 0; i < 12; i++)
        assert_true(td_at(x, TD_SHAPE(i / 4, i % 4)) == i % 4);
    td_tensor *column = view(td_from((double[]){ 1.5, 2.5, -3.5 }, TD_SHAPE(3), TD_F64), TD_SHAPE(3, 1), (int64_t[]){ 1, 1 }, 0);
    td_tensor *n = td_zeros(TD_SHAPE(3, 4), TD_I32);
    static const int cut[] = { 1, 2, -3 };
    assert_int_equal(td_assign(n, column), 0);
    for (int i = 0; i < 12; i++)
        assert_true(td_at(n, TD_SHAPE(i / 4, i % 4)) == cut[i / 4]);
    assert_int_equal(td_assign(x, td_full(TD_SCALAR, TD_BF16, 7)), 0);
    assert_true(td_at(x, TD_SHAPE(2, 3)) == 7);
    assert_int_equal(td_assign(td_zeros(TD_SHAPE(0, 4), TD_F32), row), 0);
    assert_int_equal(td_copy_in(x, (float[12]){ [11] = 9 }, 48), 0);
    assert_true(td_at(x, TD_SHAPE(2, 3)) == 9 && td_at(x, TD_SHAPE(0, 0)) == 0);
}

/* Assigning a view of the same storage: shifted, transposed, and itself. */
static void assigning_overlaps(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_arange(1000, TD_F32);
    assert_int_equal(td_assign(view(x, TD_SHAPE(999), (int64_t[]){ 1 }, 1), view(x, TD_SHAPE(999), (int64_t[]){ 1 }, 0)), 0);
    for (int i = 0; i < 1000; i++)
        assert_true(td_at(x, TD_SHAPE(i)) == (i ? i - 1 : 0));
    td_tensor *m = td_arange(49, TD_F32), *square = view(m, TD_SHAPE(7, 7), (int64_t[]){ 7, 1 }, 0);
    assert_int_equal(td_assign(square, view(m, TD_SHAPE(7, 7), (int64_t[]){ 1, 7 }, 0)), 0);
    for (int i = 0; i < 49; i++)
        assert_true(td_at(square, TD_SHAPE(i / 7, i % 7)) == i % 7 * 7 + i / 7);
    assert_int_equal(td_assign(square, square), 0);
    assert_true(td_at(square, TD_SHAPE(1, 0)) == 1);
    td_tensor *first = view(m, TD_SHAPE(7), (int64_t[]){ 1 }, 0);
    assert_int_equal(td_assign(square, first), 0);
    for (int i = 0; i < 49; i++)
        assert_true(td_at(square, TD_SHAPE(i / 7, i % 7)) == i % 7 * 7);
}

static int refuse(td_tensor *x)
{
    (void)x;
    return td__fail(TD_ERR_STATE, "in place on the graph");
}

static void the_hook_of_autograd(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_ones(TD_SHAPE(2), TD_F32);
    td__tensor_inplace_check = refuse;
    assert_true(td_fill(x, 2) < 0);
    expect_error(TD_ERR_STATE, "in place on the graph");
    assert_true(td_assign(x, x) < 0);
    expect_error(TD_ERR_STATE, "in place on the graph");
    assert_true(td_copy_in(x, (float[]){ 5, 5 }, 8) < 0);
    expect_error(TD_ERR_STATE, "in place on the graph");
    td__tensor_inplace_check = NULL;
    assert_true(td_at(x, TD_SHAPE(1)) == 1);
    assert_int_equal(x->storage->version, 0);
}

static void relocation(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *p = td_arange(10, TD_F32), *q = td_arange(6, TD_F32), *pv = view(p, TD_SHAPE(5, 2), (int64_t[]){ 2, 1 }, 0);
    td_storage *flat = td__storage_new(td_device_default(), 128);
    assert_non_null(flat);
    int64_t before = td_memory().live_bytes;
    assert_int_equal(td__storage_relocate(p->storage, flat, 0), 0);
    assert_int_equal(td__storage_relocate(q->storage, flat, 64), 0);
    assert_int_equal(td_memory().live_bytes, before - 64);         /* the two old places are free */
    assert_ptr_equal(td_data(pv), flat->data);
    assert_ptr_equal(td_data(q), (char *)flat->data + 64);
    assert_true(td_at(pv, TD_SHAPE(4, 1)) == 9 && td_at(q, TD_SHAPE(5)) == 5);
    ((float *)flat->data)[3] = 42;
    assert_true(td_at(p, TD_SHAPE(3)) == 42 && td_at(pv, TD_SHAPE(1, 1)) == 42);
    td_storage *second = td__storage_new(td_device_default(), 128);
    assert_int_equal(td__storage_relocate(p->storage, second, 64), 0);
    td__storage_unref(flat);                                       /* q keeps the first, p the second */
    td__storage_unref(second);
    assert_true(td_at(pv, TD_SHAPE(1, 1)) == 42 && td_at(q, TD_SHAPE(5)) == 5);
    assert_true(td__storage_relocate(p->storage, q->storage, 8) < 0);
    expect_error(TD_ERR_INTERNAL, "a storage of 40 bytes does not fit at 8 in one of 24 bytes");
    assert_true(td__storage_relocate(p->storage, p->storage, 0) < 0);
    expect_error(TD_ERR_INTERNAL, "into itself");
}

static int released;
static void release(void *owner, void *data)
{
    assert_ptr_equal(owner, &released);
    assert_non_null(data);
    released++;
}

static void foreign_memory(void **state)
{
    (void)state;
    static float memory[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
    released = 0;
    {
        TD_SCOPE();
        td_storage *s = td__storage_foreign(td_device_default(), memory, sizeof memory, release, &released);
        td_tensor *x = td__scoped_tensor(td__tensor_on(s, TD_SHAPE(2, 3), TD_F32, 2));
        td__storage_unref(s);
        assert_true(td_at(x, TD_SHAPE(1, 2)) == 7);
        assert_int_equal(td_fill(x, 1), 0);
        assert_int_equal(released, 0);
    }
    assert_int_equal(released, 1);
    assert_true(memory[1] == 1 && memory[2] == 1 && memory[7] == 1 && memory[0] == 0);
    td__storage_unref(td__storage_foreign(td_device_default(), memory, sizeof memory, NULL, NULL));
}

/* The n-th allocation fails, for every n: the poisoned tensor or a code, one sentence, nothing lost (the teardown counts). */
static void without_memory(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_arange(49, TD_F32);
    float got[48];
    for (int n = 1; n <= 4; n++) {
        TD_SCOPE();
        td_tensor *v = view(x, TD_SHAPE(6, 8), (int64_t[]){ 1, 6 }, 1), *w = view(x, TD_SHAPE(6, 8), (int64_t[]){ 8, 1 }, 0);
        int64_t live = td_memory().live_tensors;
        td__pool_fail_after(n);
        td_tensor *y = td_ones(TD_SHAPE(3), TD_F32);
        assert_int_equal(td_is_poisoned(y), td_error_pending() != 0);
        td__pool_fail_after(n);
        int code = td_copy_out(v, got, sizeof got);
        assert_true(code == 0 || code == TD_ERR_MEMORY);
        td__pool_fail_after(n);
        code = td_assign(w, v);
        assert_true(code == 0 || code == TD_ERR_MEMORY);
        td__pool_fail_after(n);
        td_storage *s = td__storage_new(td_device_default(), 8);
        td__pool_fail_after(-1);
        assert_true((s != NULL) == (n > 2));
        td__storage_unref(s);
        if (n <= 3)
            expect_error(TD_ERR_MEMORY, "");
        td_error_clear();
        assert_int_equal(td_memory().live_tensors, live + !y->poisoned);
    }
}

static void divisor_is_released(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *loss = td_ones(TD_SCALAR, TD_F32), *count = td_full(TD_SCALAR, TD_F32, 64);
    td__tensor_ref(count);
    loss->divisor = count;
}

static void copying(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_arange(6, TD_F64), *y = td_ones(TD_SHAPE(6), TD_F64), *z = td_ones(TD_SHAPE(6), TD_F16);
    assert_int_equal(td__copy(y, x, true), 0);
    assert_true(td_at(y, TD_SHAPE(5)) == 6);
    assert_int_equal(td__copy(z, x, false), 0);
    assert_true(td_at(z, TD_SHAPE(5)) == 5);
    assert_true(td__copy(z, x, true) < 0);
    expect_error(TD_ERR_DTYPE, "f64 cannot be added to f16");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(constructors), TEST(misuse_is_one_sentence), TEST(scopes_own), TEST(releasing_in_the_scope), TEST(threads), TEST(views),
        TEST(assigning), TEST(assigning_overlaps), TEST(the_hook_of_autograd), TEST(relocation), TEST(foreign_memory),
        TEST(without_memory), TEST(divisor_is_released), TEST(copying),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
