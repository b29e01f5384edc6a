/* tests/optim/test_capture_memory_odd.c: replays that do not go as planned: requests that differ from replay to replay, blocks that live longer than
 * they did, errors in the middle, no memory. The bits stay the step's, and what fell back is counted.
 */
#include "capture_steps.h"
#include <pthread.h>

/* ---- requests that differ, blocks that live on, errors ------------------------------------------------------------------------------------------ */

enum { DIFFERS, LIVES_ON, ELSEWHERE, ONCE, FAILS, FAILS_IN_GRAD, WAYS };
typedef struct { int way; } odd_attr;
static int turn, fail_at;
static td_tensor *before;                      /* made by the last call                                                      */
static pthread_t helper;
static bool helping;

static int odd_infer(td_call *call)
{
    return td_call_infer(call, 0, td_call_input_shape(call, 0), TD_F32);
}

static void *frees(void *block)
{
    td__free(block);
    return NULL;
}

static int odd_run(td_call *call)
{
    const odd_attr *attr = td_call_attr(call);
    td_tensor *x = td_call_input(call, 0), *y = td_call_output(call, 0);
    turn++;
    for (int i = 0; attr->way == DIFFERS && i < 1 + turn % 3; i++)
        assert_int_equal(td_fill(td_empty(TD_SHAPE(300 * (turn % 4) + 50 * i), TD_F32), 7), 0);
    if (attr->way == LIVES_ON && turn % 3 == 0) {
        td_release(before);
        before = td_keep(td_scale(x, 2));
    }
    if (attr->way == ELSEWHERE) {
        if (helping)
            pthread_join(helper, NULL);
        helping = pthread_create(&helper, NULL, frees, td__alloc(5000)) == 0;
    }
    if (attr->way == ONCE && !before)
        before = td_keep(td_scale(x, 2));
    if (attr->way == FAILS && turn == fail_at)
        return td_call_error(call, TD_ERR_STATE, "fails this once");
    int code = td__copy(y, x, false);
    td_tensor *mark = td__tensor_new(td_call_input_shape(call, 0), TD_F32, td_device_default());
    code = code ? code : td__copy(mark, x, false);
    td_call_save(call, mark);
    return code;
}

static int odd_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    const odd_attr *attr = td_call_attr(call);
    if (attr->way == FAILS_IN_GRAD && turn == fail_at)
        return td_call_error(call, TD_ERR_STATE, "fails this once");
    return in[0].into ? td__copy(in[0].into, grad_out[0], in[0].add) : 0;
}

static const td_op odd = { .name = "odd", .infer = odd_infer, .run = odd_run, .grad = odd_grad, .attr_size = sizeof(odd_attr) };
static int way;

static td_tensor *odd_between(job *j, td_tensor *x)
{
    (void)j;
    odd_attr attr = { way };
    td_tensor *y = td_apply(&odd, &x, 1, &attr);
    return td_add(td_scale(y, 0.5), td_tanh(y));
}

static void odd_end(void)
{
    td_release(before);
    before = NULL;
    if (helping)
        pthread_join(helper, NULL);
    helping = false;
}

static void right_all_the_same(void **state)
{
    (void)state;
    static const char *const says[] = { "requests that differ", "blocks that live on", "blocks freed by another thread", "a block made once" };
    for (way = DIFFERS; way <= ONCE; way++) {
        TD_SCOPE();
        turn = 0;
        job a = begin(CNN);
        a.between = odd_between;
        eager(&a);
        end(&a);
        odd_end();
        turn = 0;
        job b = begin(CNN);
        b.between = odd_between;
        td_graph *g = replays(&b, NULL);
        expect_same(says[way]);
        int64_t fell = td_graph_stats(g).fell;
        if (way != ELSEWHERE && (way == DIFFERS) != (fell > 0))        /* when the other thread frees is chance                  */
            fail_msg("%s: %lld requests went to the pool", says[way], (long long)fell);
        if (way == ONCE)
            odd_end();
        td_graph_free(g);
        odd_end();
        end(&b);
    }
}

/* A replay that fails leaves weights alone; the next one is right, and what the broken one left behind is nobody's. */
static void after_an_error(void **state)
{
    (void)state;
    for (way = FAILS; way <= FAILS_IN_GRAD; way++)
        for (int at = 2; at < 6; at++) {
            TD_SCOPE();
            td_tensor *in[2];
            turn = fail_at = 0;
            job a = begin(CNN);
            a.between = odd_between;
            eager(&a);
            end(&a);
            turn = 0;
            job b = begin(CNN);
            b.between = odd_between;
            td_graph *g = first(&b, NULL);
            fail_at = at;
            for (int s = 1; s < STEPS; s++) {
                if (turn + 1 == fail_at) {
                    float buffers[64];
                    td_tensors list = td_buffers(b.net);
                    size_t used = 0;
                    for (size_t i = 0; i < list.n; i++) {      /* running statistics of the layers before it have moved */
                        size_t n = (size_t)td_numel(list.list[i]);
                        assert_true(used + n <= 64);
                        td_copy_out(list.list[i], buffers + used, n * 4);
                        used += n;
                    }
                    spoil(g);
                    assert_true(td_is_poisoned(td_replay(g, batch(&b, s, in))));
                    assert_int_equal(td_error_pending(), TD_ERR_STATE);
                    td_error_clear();
                    used = 0;
                    for (size_t i = 0; i < list.n; i++) {
                        td_copy_in(list.list[i], buffers + used, (size_t)td_numel(list.list[i]) * 4);
                        used += (size_t)td_numel(list.list[i]);
                    }
                    td_step_set(td_step_get());                /* the same numbers again                                    */
                }
                got.loss[s] = once(g, &b, s);
            }
            look(&b, &got);
            expect_same("after an error");
            td_graph_free(g);
            end(&b);
        }
}

/* The n-th request of a replay fails, for each n of the one that is noted. */
static void without_memory(void **state)
{
    (void)state;
    for (int n = 1; n < 400; n += n < 40 ? 1 : 23) {
        TD_SCOPE();
        td_tensor *in[2];
        job j = begin(MLP);
        td_graph *g = first(&j, NULL);
        td__pool_fail_after(n);
        td_tensor *loss = td_replay(g, batch(&j, 1, in));
        td__pool_fail_after(-1);
        assert_true(td_is_poisoned(loss) == (td_error_pending() != 0));
        td_error_clear();
        for (int s = 2; s < 5; s++)
            assert_true(isfinite(once(g, &j, s)));
        assert_int_equal(td_error_pending(), 0);
        td_graph_free(g);
        end(&j);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(right_all_the_same), TEST(after_an_error), TEST(without_memory),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
