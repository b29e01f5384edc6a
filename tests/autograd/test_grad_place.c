/* tests/autograd/test_grad_place.c: gradients of pieces lie in the gradient of the whole (autograd/grad_place.c): by chance, pieces of all kinds cut from
 * one tensor, seen through reshapes and permutes, used once, twice or with the whole itself, with and without hooks, against sums by hand; and which
 * places pieces get.
 */
#include "core_ops.h"
#include <plan.h>

enum { ROWS = 3, TIMES = 4, HEADS = 2, WIDE = 6, NUMBERS = ROWS * TIMES * WIDE * HEADS };

static uint64_t state_of_chance = 1;

static int chance(int below)
{
    state_of_chance = state_of_chance * 6364136223846793005u + 1442695040888963407u;
    return (int)(state_of_chance >> 33) % below;
}

typedef struct { int dim, start, length, kind; } piece;

/* Another look at elements of x: what the gradient has to find its way back through. */
static td_tensor *look(td_tensor *x, piece p)
{
    td_tensor *y = td_narrow(x, p.dim, p.start, p.length);
    td_shape s = td_shape_of(y);
    switch (p.kind) {
    case 0: return y;
    case 1: return td_transpose(y, 0, 2);
    case 2: return s.dim[2] % 2 ? td_transpose(y, 0, 1) : td_transpose(td_reshape(y, TD_SHAPE(s.dim[0], s.dim[1], 2, s.dim[2] / 2)), 1, 2);
    case 3: return td_reshape(td_transpose(y, 1, 2), TD_SHAPE(s.dim[0] * s.dim[2], s.dim[1]));
    case 4: return td_transpose(td_narrow(y, 1, s.dim[1] / 2, s.dim[1] - s.dim[1] / 2), 1, 2);
    default: return td_transpose(td_reshape(y, TD_SHAPE(-1)), 0, 0);
    }
}

static bool covers(piece p, const int *at)
{
    if (at[p.dim] < p.start || at[p.dim] >= p.start + p.length)
        return false;
    if (p.kind != 4)
        return true;
    const int length = p.dim == 1 ? p.length : TIMES, first = p.dim == 1 ? p.start : 0;
    return at[1] >= first + length / 2;
}

static void called(td_tensor *grad, void *user)
{
    (void)grad;
    ++*(int *)user;
}

static void by_chance(void **state)
{
    static const int size[3] = { ROWS, TIMES, WIDE * HEADS };
    (void)state;
    for (int trial = 0; trial < 400; trial++) {
        TD_SCOPE();
        td_tensor *x = leaf_of(td_cast(td_randn(TD_SHAPE(ROWS, TIMES, WIDE * HEADS), 5, (uint64_t)trial), TD_F64)), *y = td_scale(x, 0.5);
        const int pieces = 1 + chance(5), usual = chance(3), first = chance(4);
        double want[NUMBERS] = { 0 }, v[NUMBERS];
        int hooks = 0, hooked = 0;
        td_tensor *loss = first == 0 ? td_scale(td_sum(td_mul(y, y), NULL, 0, false), 0.5) : NULL;
        td_copy_out(x, v, sizeof v);
        for (int e = 0; e < NUMBERS && first == 0; e++)
            want[e] = 0.25 * v[e];
        int next = 0;
        for (int k = 0; k < pieces; k++) {
            piece p = { .dim = chance(4) ? usual : chance(3), .kind = chance(6) };
            /* mostly one behind the other, as heads are cut */
            p.start = chance(4) && next < size[p.dim] ? next : chance(size[p.dim]);
            p.length = 1 + chance(size[p.dim] - p.start);
            next = p.start + p.length;
            td_tensor *w = td_cast(td_randn(TD_SHAPE(ROWS, TIMES, WIDE * HEADS), 6, (uint64_t)(8 * trial + k)), TD_F64);
            td_tensor *seen = look(y, p), *by = look(w, p);
            const int times = 1 + (chance(4) == 0);
            if (chance(5) == 0) {
                td_hook(seen, called, &hooks);
                hooked++;
            }
            for (int i = 0; i < times; i++) {
                td_tensor *sum = td_sum(td_mul(td_tanh(seen), by), NULL, 0, false);
                loss = loss ? td_add(loss, sum) : sum;
            }
            double r[NUMBERS];
            td_copy_out(w, r, sizeof r);
            for (int e = 0; e < NUMBERS; e++)
                if (covers(p, (int[]){ e / (TIMES * WIDE * HEADS), e / (WIDE * HEADS) % TIMES, e % (WIDE * HEADS) }))
                    want[e] += times * 0.5 * (1 - tanh(0.5 * v[e]) * tanh(0.5 * v[e])) * r[e];
        }
        const bool again = chance(4) == 0;
        assert_int_equal(td_backward_with(loss, &(td_backward_opts){ .retain_graph = again }), 0);
        if (again)
            assert_int_equal(td_backward(loss), 0);                    /* the mean of two that are the same                           */
        assert_int_equal(hooks, hooked * (1 + again));
        double got[NUMBERS];
        assert_int_equal(td_copy_out(td_grad(x), got, sizeof got), 0);
        for (int e = 0; e < NUMBERS; e++)
            if (!(fabs(got[e] - want[e]) <= 1e-13 * (1 + fabs(want[e]))))
                fail_msg("trial %d, element %d: %.17g, expected %.17g", trial, e, got[e], want[e]);
    }
}

static void places(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = leaf_of(td_zeros(TD_SHAPE(3, 12), TD_F64)), *y = td_scale(x, 1), *seen[4];
    const int start[4] = { 4, 8, 0, 10 }, length[4] = { 4, 2, 2, 2 };          /* next to each other: the first, the second, the last             */
    for (int i = 0; i < 4; i++)
        seen[i] = td_reshape(td_narrow(y, 1, start[i], length[i]), TD_SHAPE(3, 2, length[i] / 2));
    td_call *from = td__graph_node(td__graph_of(y));
    for (int i = 0; i < 4; i++) {
        td_tensor *place = td__grad_place(td__graph_of(seen[i]), td_shape_of(seen[i]));
        if (i == 2) {
            assert_null(place);
            continue;
        }
        assert_ptr_equal(place->storage, from->grad[0]->storage);
        assert_int_equal(place->offset - from->grad[0]->offset, start[i]);
        assert_int_equal(place->stride[0], 12);
        td_fill(place, 1 + i);
    }
    assert_int_equal(td__grad_complete(from), 0);
    for (int e = 0; e < 36; e++)
        assert_true(V(from->grad[0])[e] == (e % 12 < 4 ? 0 : e % 12 < 8 ? 1 : e % 12 < 10 ? 2 : 4));
    assert_null(td__grad_place(td__graph_of(td_narrow(x, 0, 0, 1)), TD_SHAPE(1, 12)));     /* of a leaf: its gradient is somebody else's memory */
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(by_chance), TEST(places) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
