/* What the table cannot say of norms, indices and pieces: sentences of misuse word by word, the padding row, long lists, views.
 */
#include <autograd_impl.h>
#include <tandem.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <quiet_test.h>
#include <sentence.h>

static td_tensor *f(td_shape s)
{
    return td_ones(s, TD_F32);
}

static td_tensor *leaf(td_shape s)
{
    td_tensor *x = td_ones(s, TD_F64);
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return x;
}

static void norms(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = f(TD_SHAPE(4, 3, 6));
    expect_poisoned(td_layer_norm(x, f(TD_SHAPE(5)), NULL, 1, 1e-5), TD_ERR_SHAPE,
           "td_layer_norm: w has shape (5), expected (6), the last dimension of x (4,3,6)");
    expect_poisoned(td_layer_norm(x, NULL, f(TD_SHAPE(6)), 2, 1e-5), TD_ERR_SHAPE,
           "td_layer_norm: b has shape (6), expected (3,6), the last dimensions of x (4,3,6)");
    expect_poisoned(td_layer_norm(x, NULL, NULL, 4, 1e-5), TD_ERR_SHAPE,
           "td_layer_norm: the last 4 dimensions are to be normalised, x has shape (4,3,6): expected 1 to 3 of them");
    expect_poisoned(td_layer_norm(x, NULL, NULL, 1, -1), TD_ERR_ARGUMENT, "td_layer_norm: eps is -1, expected at least 0");
    expect_poisoned(td_layer_norm(td_ones(TD_SHAPE(2), TD_I64), NULL, NULL, 1, 0), TD_ERR_DTYPE, "td_layer_norm: x is i64; it must be a float (td_cast converts)");
    expect_poisoned(td_layer_norm(NULL, NULL, NULL, 1, 0), TD_ERR_ARGUMENT, "td_layer_norm: input 0 is NULL");
    expect_poisoned(td_rms_norm(x, td_ones(TD_SHAPE(6), TD_F64), 0), TD_ERR_DTYPE, "td_rms_norm: w is f64, expected f32 as x");
    expect_poisoned(td_rms_norm(f(TD_SCALAR), NULL, 0), TD_ERR_SHAPE, "td_rms_norm: the last 1 dimensions are to be normalised, x has shape ()");
    expect_poisoned(td_group_norm(x, 2, NULL, NULL, 1e-5), TD_ERR_ARGUMENT, "td_group_norm: 2 groups do not divide the 3 channels of x (4,3,6)");
    expect_poisoned(td_group_norm(x, 3, f(TD_SHAPE(6)), NULL, 1e-5), TD_ERR_SHAPE,
           "td_group_norm: w has shape (6), expected (3), the channels of x (4,3,6)");
    expect_poisoned(td_group_norm(f(TD_SHAPE(3)), 1, NULL, NULL, 1e-5), TD_ERR_SHAPE,
           "td_group_norm: x has shape (3), expected at least 2 dimensions (N,C,…)");
}

static void indices(void **state)
{
    (void)state;
    TD_SCOPE();
    const int64_t v[] = { 0, 7, 49, 50 };
    td_tensor *w = f(TD_SHAPE(50, 8)), *ids = td_from(v, TD_SHAPE(2, 2), TD_I64);
    expect_poisoned(td_embedding(w, ids, NULL), TD_ERR_ARGUMENT, "td_embedding: the id at position (1,1) is 50; the weight (50,8) has rows 0 to 49");
    expect_poisoned(td_embedding(w, td_cast(td_neg(ids), TD_I32), NULL), TD_ERR_ARGUMENT,
           "td_embedding: the id at position (0,1) is -7; the weight (50,8) has rows");
    expect_poisoned(td_embedding(f(TD_SHAPE(0, 8)), ids, NULL), TD_ERR_ARGUMENT,
           "td_embedding: the id at position (0,0) is 0; the weight (0,8) has rows none");
    expect_poisoned(td_embedding(w, w, NULL), TD_ERR_DTYPE, "td_embedding: ids is f32, expected i64 or i32");
    expect_poisoned(td_embedding(f(TD_SHAPE(8)), ids, NULL), TD_ERR_SHAPE, "td_embedding: the weight has shape (8), expected (V,D)");
    expect_poisoned(td_embedding(w, td_zeros(TD_SHAPE(1, 1, 1, 1, 1, 1, 1, 1), TD_I64), NULL), TD_ERR_SHAPE,
           "td_embedding: ids (1,1,1,1,1,1,1,1) have 8 dimensions, expected at most 7");
    expect_poisoned(td_embedding(w, ids, &(td_embedding_opts){ .has_padding_idx = true, .padding_idx = 50 }), TD_ERR_ARGUMENT,
           "td_embedding: padding_idx is 50; the weight (50,8) has 50 rows");
    td_tensor *x = f(TD_SHAPE(3, 4)), *three = td_full(TD_SHAPE(2), TD_I64, 3);
    expect_poisoned(td_index_select(x, 0, three), TD_ERR_ARGUMENT,
           "td_index_select: the index at position (0) is 3; dimension 0 of x (3,4) has places 0 to 2");
    expect_poisoned(td_index_select(x, 2, three), TD_ERR_SHAPE, "td_index_select: dimension 2 is outside -2 to 1");
    expect_poisoned(td_index_select(x, 0, ids), TD_ERR_SHAPE, "td_index_select: the index has shape (2,2), expected one dimension");
    expect_poisoned(td_gather(x, 1, td_zeros(TD_SHAPE(2, 4), TD_I64)), TD_ERR_SHAPE,
           "td_gather: the index (2,4) does not fit x (3,4): only dimension 1 may differ");
    expect_poisoned(td_gather(x, 1, td_full(TD_SHAPE(3, 1), TD_I64, 4)), TD_ERR_ARGUMENT,
           "td_gather: the index at position (0,0) is 4; dimension 1 of x (3,4) has places 0 to 3");
}

static void pieces(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = f(TD_SHAPE(2, 3)), *list[] = { x, f(TD_SHAPE(2, 4)), NULL }, *out[2];
    expect_poisoned(td_concat(list, 2, 0), TD_ERR_SHAPE, "td_concat: shapes (2,3) and (2,4) do not join along dimension 0: the others must be equal");
    expect_poisoned(td_concat(list, 3, 1), TD_ERR_ARGUMENT, "td_concat: tensor 2 of 3 is NULL");
    expect_poisoned(td_concat(list, 0, 1), TD_ERR_ARGUMENT, "td_concat: the list is empty, expected at least one tensor");
    expect_poisoned(td_concat(list, 2, 2), TD_ERR_SHAPE, "td_concat: dimension 2 is outside -2 to 1");
    expect_poisoned(td_stack(list, 2, 0), TD_ERR_SHAPE, "td_stack: tensor 0 has shape (2,3) and tensor 1 (2,4), expected equal ones");
    expect_poisoned(td_stack(&x, 1, 3), TD_ERR_SHAPE, "td_stack: dimension 3 is outside -3 to 2");
    expect_poisoned(td_stack(NULL, 1, 3), TD_ERR_ARGUMENT, "td_stack: the list is NULL, expected at least one tensor");
    list[1] = td_ones(TD_SHAPE(2, 3), TD_F64);
    expect_poisoned(td_concat(list, 2, 0), TD_ERR_DTYPE, "td_concat: dtypes f32 and f64 differ (td_cast converts)");
    td_split(x, (int64_t[]){ 1, 1 }, 2, 1, out);
    expect_poisoned(out[1], TD_ERR_ARGUMENT, "td_split: the sizes do not add up to dimension 1 of shape (2,3)");
    td_split(x, (int64_t[]){ 4, -1 }, 2, 1, out);
    expect_poisoned(out[0], TD_ERR_ARGUMENT, "td_split: the sizes must be 0 or more and add up to dimension 1 of shape (2,3)");
    td_split(NULL, (int64_t[]){ 4, -1 }, 2, 1, out);
    expect_poisoned(out[0], TD_ERR_ARGUMENT, "td_split: the tensor is NULL");
    expect_poisoned(td_pad(x, (int64_t[]){ 0, -1 }, (int64_t[]){ 0, 2 }, 2, 0), TD_ERR_ARGUMENT,
           "td_pad: dimension 1 is padded by -1 and 2, expected 0 or more (td_narrow cuts)");
    expect_poisoned(td_pad(x, (int64_t[]){ 0 }, (int64_t[]){ 0 }, 1, 0), TD_ERR_ARGUMENT, "td_pad: 1 dimensions are padded, shape (2,3) has 2");
    expect_poisoned(td_pad(x, NULL, (int64_t[]){ 0 }, 1, 0), TD_ERR_ARGUMENT, "td_pad: before is NULL");
    expect_poisoned(td_pad(x, (int64_t[]){ INT64_MAX, 0 }, (int64_t[]){ 0, 0 }, 2, 0), TD_ERR_SHAPE,
           "td_pad: dimension 0, padded by 9223372036854775807 and 0, is larger than can be addressed");
}

/* The padding row is looked up like any other and gets no gradient; rows looked up n times get n. */
static void padding(void **state)
{
    (void)state;
    TD_SCOPE();
    const int32_t id[] = { 2, 0, 2, 3, 0, 2 };
    td_tensor *w = leaf(TD_SHAPE(4, 3)), *y = td_embedding(w, td_from(id, TD_SHAPE(2, 3), TD_I32),
                                                           &(td_embedding_opts){ .has_padding_idx = true, .padding_idx = 0 });
    assert_true(td_at(y, TD_SHAPE(0, 1, 0)) == 1);
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    const double count[] = { 0, 0, 3, 1 };
    for (int i = 0; i < 4; i++)
        assert_true(td_at(td_grad(w), TD_SHAPE(i, 2)) == count[i]);
}

/* More pieces than one call takes: values, and each piece's gradient. */
static void long_lists(void **state)
{
    (void)state;
    TD_SCOPE();
    enum { N = TD_OP_MAX_INPUTS * TD_OP_MAX_INPUTS + 3 };
    td_tensor **piece = td__alloc(N * sizeof *piece);
    for (int i = 0; i < N; i++)
        piece[i] = td_full(TD_SHAPE(2, 1), TD_F64, i);
    td_requires_grad((td_tensors){ piece, N }, true);
    td_tensor *whole = td_concat(piece, N, 1), *rows = td_stack(piece, N, 0);
    assert_true(td__shape_equal(td_shape_of(whole), TD_SHAPE(2, N)) && td__shape_equal(td_shape_of(rows), TD_SHAPE(N, 2, 1)));
    for (int i = 0; i < N; i++)
        assert_true(td_at(whole, TD_SHAPE(1, i)) == i && td_at(rows, TD_SHAPE(i, 1, 0)) == i);
    td_tensor *weight = td_cast(td_arange(N, TD_I64), TD_F64);
    assert_int_equal(td_backward(td_sum(td_mul(whole, weight), NULL, 0, false)), 0);
    for (int i = 0; i < N; i++)
        assert_true(td_at(td_grad(piece[i]), TD_SHAPE(0, 0)) == i);
    td__free(piece);
}

/* Pieces share x's storage; joined again they are x, and the gradient comes back whole. */
static void split(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = leaf(TD_SHAPE(2, 6)), *part[3];
    td_split(x, (int64_t[]){ 1, 0, 5 }, 3, -1, part);
    for (int i = 0; i < 3; i++)
        assert_ptr_equal(part[i]->storage, x->storage);
    assert_true(td__shape_equal(td_shape_of(part[1]), TD_SHAPE(2, 0)) && td_dim(part[2], 1) == 5);
    td_tensor *again = td_concat((td_tensor *[]){ td_scale(part[0], 2), part[1], td_scale(part[2], 3) }, 3, 1);
    assert_int_equal(td_backward(td_sum(again, NULL, 0, false)), 0);
    for (int i = 0; i < 6; i++)
        assert_true(td_at(again, TD_SHAPE(1, i)) == (i ? 3 : 2) && td_at(td_grad(x), TD_SHAPE(1, i)) == (i ? 3 : 2));
}

/* The same tensor several times: its gradients add. */
static void one_tensor_twice(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = leaf(TD_SHAPE(3));
    assert_int_equal(td_backward(td_sum(td_concat((td_tensor *[]){ x, x, x }, 3, 0), NULL, 0, false)), 0);
    assert_true(td_at(td_grad(x), TD_SHAPE(2)) == 3);
    assert_int_equal(td_error_pending(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(norms), TEST(indices), TEST(pieces), TEST(padding), TEST(long_lists), TEST(split), TEST(one_tensor_twice),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
