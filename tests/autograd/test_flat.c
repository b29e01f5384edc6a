/* Flats and groups: layout, moves that keep values, gradients and means, freeing in every order, and what attached groups are told. */
#include "core_ops.h"

static td__leaf *L(td_tensor *x) { return td__leaf_of(x); }

static void layout(void **state)
{
    (void)state;
    td_tensor *a = LEAF(1, 2, 3), *b = LEAF(4, 5, 6, 7, 8, 9, 10, 11, 12), *c = LEAF(13);
    td__group *g = td__group_new((td__leaf *[]){ L(c), L(a), L(b) }, (int[]){ 1, 2 }, 2, NULL, NULL);
    assert_non_null(g);
    assert_int_equal(g->flats, 2);
    assert_int_equal(g->flat[0]->n, 8);
    assert_int_equal(g->flat[1]->n, 8 + 16);
    assert_int_equal(L(b)->offset, 8);
    assert_ptr_equal(td__ptr(b), (double *)g->flat[1]->value->data + 8);
    assert_null(g->flat[1]->grad);                                   /* nothing to hold yet */
    assert_int_equal((uintptr_t)td__ptr(b) % 64, 0);
    EXPECT(a, 1, 2, 3);
    EXPECT(b, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    EXPECT(c, 13);
    assert_int_equal(backward(t_sum(t_mul(a, VEC(2, 3, 4)))), 0);
    assert_ptr_equal(L(a)->grad->storage, g->flat[1]->grad);
    double *flat = g->flat[1]->grad->data;
    assert_true(flat[0] == 2 && flat[1] == 3 && flat[2] == 4);       /* born in its bucket */
    for (int i = 3; i < 8; i++)
        assert_true(flat[i] == 0 && ((double *)g->flat[1]->value->data)[i] == 0);
    assert_null(td_grad(b));
    td__group_free(g);
    EXPECT(a, 1, 2, 3);
    EXPECT(td_grad(a), 2, 3, 4);
}

static void moves_keep_gradients_and_means(void **state)
{
    (void)state;
    td_tensor *a = LEAF(1), *b = LEAF(1), *c = LEAF(1);
    assert_int_equal(backward(t_loss(t_times(a, 3), 4)), 0);
    assert_int_equal(backward(t_loss(t_times(b, 20), 10)), 0);
    assert_int_equal(backward(t_loss(t_times(b, 1), 5)), 0);
    td_tensor *held = td_grad(b);
    td__group *g = td__group_new((td__leaf *[]){ L(a), L(b), L(c) }, (int[]){ 3 }, 1, NULL, NULL);
    assert_non_null(g);
    EXPECT(td_grad(a), 3 / 4.);
    EXPECT(td_grad(b), 21 / 15.);
    assert_null(td_grad(c));
    assert_ptr_equal(held, td_grad(b));                             /* the handle stays valid */
    uint64_t was = g->layout;
    assert_int_equal(td__group_rebuild(g, (td__leaf *[]){ L(c), L(b), L(a) }, (int[]){ 2, 1 }, 2, NULL, NULL), 0);
    assert_int_not_equal(g->layout, was);
    assert_int_equal(g->flats, 2);
    EXPECT(a, 1);
    EXPECT(td_grad(a), 3 / 4.);
    EXPECT(td_grad(b), 21 / 15.);
    assert_ptr_equal(td__ptr(td_grad(a)), g->flat[1]->grad->data);
    td__group_free(g);
    EXPECT(td_grad(a), 3 / 4.);
    assert_int_equal(backward(t_loss(t_times(a, 7), 4)), 0);        /* the weight has come along */
    EXPECT(td_grad(a), (3 + 7) / 8. * 1);
}

static void one_mean_for_the_group(void **state)
{
    (void)state;
    td_tensor *a = LEAF(1), *b = LEAF(1);
    td__group *g = td__group_new((td__leaf *[]){ L(a), L(b) }, (int[]){ 2 }, 1, NULL, NULL);
    assert_int_equal(backward(t_loss(t_times(t_add(a, b), 3), 4)), 0);
    assert_int_equal(backward(t_loss(t_times(a, 5), 6)), 0);        /* b contributes zero here, with weight 6 */
    assert_int_equal(td__group_finalise(g), 0);
    EXPECT(td_grad(a), 8 / 10.);
    EXPECT(td_grad(b), 3 / 10.);
    zero_grad(a);
    assert_true(g->weight == 10);
    EXPECT(td_grad(b), 3 / 10.);
    zero_grad(b);
    assert_true(g->weight == 0);                                    /* nothing is left: a new batch */
    td__group_free(g);
}

static void refusals(void **state)
{
    (void)state;
    td_tensor *a = LEAF(1), *b = LEAF(1, 2, 3), *f = leaf_of(td_zeros(TD_SHAPE(2), TD_F32));
    assert_null(td__group_new((td__leaf *[]){ L(a), L(f) }, (int[]){ 2 }, 1, NULL, NULL));
    expect_error(TD_ERR_DTYPE, "f64 and f32 cannot share one flat");
    assert_null(td__group_new((td__leaf *[]){ L(a), L(a) }, (int[]){ 2 }, 1, NULL, NULL));
    expect_error(TD_ERR_ARGUMENT, "listed twice");
    td_tensor *view = td__scoped_tensor(td__tensor_view(b, TD_SHAPE(2), (int64_t[]){ 1 }, 1));
    assert_null(td__group_new((td__leaf *[]){ L(leaf_of(view)) }, (int[]){ 1 }, 1, NULL, NULL));
    expect_error(TD_ERR_STATE, "shape (2) is a view of a larger");
    td_tensor *alias = leaf_of(td__scoped_tensor(td__tensor_view(b, TD_SHAPE(3, 1), (int64_t[]){ 1, 1 }, 0)));
    assert_null(td__group_new((td__leaf *[]){ L(b), L(alias) }, (int[]){ 1, 1 }, 2, NULL, NULL));
    expect_error(TD_ERR_ARGUMENT, "shares its memory");
    td__group *g = td__group_new((td__leaf *[]){ L(a) }, (int[]){ 1 }, 1, NULL, NULL);
    assert_null(td__group_new((td__leaf *[]){ L(a) }, (int[]){ 1 }, 1, NULL, NULL));
    expect_error(TD_ERR_STATE, "belongs to another optimizer or td_ddp already");
    assert_int_not_equal(td__group_rebuild(g, (td__leaf *[]){ L(b) }, (int[]){ 1 }, 1, NULL, NULL), 0);
    expect_error(TD_ERR_STATE, "belongs to no or another");
    td__group_free(g);
}

static void empty_leaves_and_flats(void **state)
{
    (void)state;
    td_tensor *none = leaf_of(td_zeros(TD_SHAPE(0, 3), TD_F64)), *a = LEAF(1);
    td__group *g = td__group_new((td__leaf *[]){ L(none), L(a), L(none) }, (int[]){ 1, 1 }, 2, NULL, NULL);
    assert_non_null(g);
    assert_int_equal(g->flat[0]->n, 0);
    assert_int_equal(backward(t_sum(none)), 0);
    assert_int_equal(td__group_finalise(g), 0);
    td__group_free(g);
}

/* ---- attached groups: the order of what they are told -------------------------------------------------------------------------------- */

static char told[512];
static int begin_code, end_pending;
static void tell(const char *format, ...)
{
    size_t n = strlen(told);
    va_list args;
    va_start(args, format);
    vsnprintf(told + n, sizeof told - n, format, args);
    va_end(args);
}
static int begin(td__group *g, bool reached, int error, double weight)
{
    tell("begin%s(%d,%d,%g) ", (char *)g->user, reached, error, weight);
    return error ? error : begin_code && *(char *)g->user == 'B' ? td__fail_verbatim(begin_code, "another rank failed") : 0;
}
static void leaf_ready(td__leaf *leaf)
{
    assert_true(leaf->has_grad);
    tell("ready%d ", leaf->index);
}
static int end(td__group *g)
{
    end_pending = td__pending();
    tell("end%s ", (char *)g->user);
    return 0;
}
static int wait_flat(td__flat *f)
{
    tell("wait%d ", f->index);
    return 0;
}
static void step_end(td__group *g)
{
    tell("step_end%s ", (char *)g->user);
}
static void leaf_gone(td__leaf *leaf)
{
    tell("gone%d ", leaf->index);
}
static const td__group_ops ops = { .begin = begin, .leaf_ready = leaf_ready, .end = end, .wait = wait_flat, .step_end = step_end,
                                   .leaf_gone = leaf_gone };
#define EXPECT_TOLD(text) do { assert_string_equal(told, text); told[0] = 0; } while (0)

static void attached_groups_are_told(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1), *y = LEAF(2), *z = LEAF(3), *free_leaf = LEAF(4);
    L(x)->index = 1, L(y)->index = 2, L(z)->index = 3;
    td__group *a = td__group_new((td__leaf *[]){ L(x), L(y) }, (int[]){ 1, 1 }, 2, NULL, "A");
    td__group *b = td__group_new((td__leaf *[]){ L(z) }, (int[]){ 1 }, 1, NULL, "B");
    td__group_attach(a, &ops);
    td__group_attach(b, &ops);
    told[0] = 0;
    begin_code = 0;

    td_tensor *h = t_mul(x, x);                                      /* x is reached twice, ready once, after y */
    assert_int_equal(backward(t_loss(t_mul(t_mul(h, y), x), 4)), 0);
    EXPECT_TOLD("beginA(1,0,4) beginB(0,0,4) ready2 ready1 endA endB ");
    EXPECT(td_grad(x), 3 / 4. * 2);
    EXPECT_TOLD("wait0 wait1 ");

    assert_int_equal(backward(t_sum(VEC(1))), 0);                    /* reaches nothing: legal here, and told */
    EXPECT_TOLD("beginA(0,0,1) beginB(0,0,1) endA endB ");
    assert_int_equal(backward(t_sum(free_leaf)), 0);
    EXPECT_TOLD("beginA(0,0,1) beginB(0,0,1) endA endB ");

    assert_int_equal(backward(t_loss(t_mul(z, VEC(NAN)), 0)), 0);    /* weight 0: ready all the same */
    EXPECT_TOLD("beginA(0,0,0) beginB(1,0,0) ready3 endA endB ");

    td_tensor *loss = t_sum(z);
    t_mul(x, VEC(1, 2));                                             /* a pending error is told, nothing runs */
    assert_int_equal(backward(loss), TD_ERR_SHAPE);
    char expected[64];
    snprintf(expected, sizeof expected, "beginA(0,%d,0) beginB(0,%d,0) ", TD_ERR_SHAPE, TD_ERR_SHAPE);
    EXPECT_TOLD(expected);
    expect_error(TD_ERR_SHAPE, "shapes differ");

    begin_code = TD_ERR_PEER;                                        /* another rank's error stops this one before anything runs */
    assert_int_equal(backward(loss), TD_ERR_PEER);
    EXPECT_TOLD("beginA(0,0,1) beginB(1,0,1) endA ");
    assert_int_equal(end_pending, TD_ERR_PEER);
    expect_error(TD_ERR_PEER, "another rank failed");
    begin_code = 0;
    assert_true(b->weight == 0);
    assert_int_equal(backward(loss), 0);                             /* its graph is still whole */
    EXPECT_TOLD("beginA(0,0,1) beginB(1,0,1) ready3 endA endB ");
    EXPECT(td_grad(z), 1);
    EXPECT_TOLD("wait0 ");

    td__group_consume(b);
    EXPECT_TOLD("step_endB ");
    td_zero_grad((td_tensors){ (td_tensor *[]){ x, y }, 2 });
    EXPECT_TOLD("wait0 wait1 step_endA ");
    td__group_attach(a, NULL);
    assert_int_equal(backward(t_sum(x)), 0);
    EXPECT_TOLD("beginB(0,0,1) endB ");
    td__group_free(b);
    td__group_free(a);
    EXPECT_TOLD("");
}

static void another_rank_reaches_the_group(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1);
    td__group *g = td__group_new((td__leaf *[]){ L(x) }, (int[]){ 1 }, 1, NULL, NULL);
    td__group_weigh(g, 6);                                           /* this rank contributed zero, with weight 6 */
    assert_int_equal(backward(t_loss(t_times(x, 10), 4)), 0);
    EXPECT(td_grad(x), 10 / 10.);
    td__group_free(g);
}

static void leaves_freed_before_their_group(void **state)
{
    (void)state;
    td_tensor *keep = LEAF(7);
    L(keep)->index = 5;
    td__group *g;
    {
        TD_SCOPE();
        td_tensor *x = LEAF(1), *y = LEAF(2);
        L(x)->index = 1, L(y)->index = 2;
        g = td__group_new((td__leaf *[]){ L(x), L(keep), L(y) }, (int[]){ 3 }, 1, NULL, "A");
        td__group_attach(g, &ops);
        told[0] = 0;
    }
    assert_non_null(strstr(told, "gone1 "));
    assert_non_null(strstr(told, "gone2 "));
    assert_int_equal(g->flat[0]->leaves, 1);
    assert_ptr_equal(g->flat[0]->leaf[0], L(keep));
    EXPECT(keep, 7);
    assert_int_equal(backward(t_sum(keep)), 0);
    EXPECT(td_grad(keep), 1);
    td__group_free(g);
    EXPECT(keep, 7);
}

static int allocations;
static void given_back(void *owner, void *data)
{
    (void)owner;
    allocations--;
    td__free(data);
}
static td_storage *arena(void *user, size_t bytes)
{
    assert_string_equal(user, "U");
    allocations++;
    return td__storage_foreign(td_device_default(), td__alloc(bytes), bytes, given_back, NULL);
}
static void gradients_in_an_arena(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    td__group *g = td__group_new((td__leaf *[]){ L(x) }, (int[]){ 1 }, 1, &(td__flat_memory){ .grad = arena }, "U");
    assert_int_equal(allocations, 1);
    assert_int_equal(backward(t_sum(x)), 0);
    assert_true(((double *)g->flat[0]->grad->data)[1] == 1);
    td__group_free(g);
    EXPECT(td_grad(x), 1, 1);                                        /* the storage lives as long as its views */
    assert_int_equal(allocations, 1);
    td__scope_close_root();
    assert_int_equal(allocations, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(layout), TEST(moves_keep_gradients_and_means), TEST(one_mean_for_the_group), TEST(refusals), TEST(empty_leaves_and_flats),
        TEST(attached_groups_are_told), TEST(another_rank_reaches_the_group), TEST(leaves_freed_before_their_group), TEST(gradients_in_an_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
