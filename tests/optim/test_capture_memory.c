/* tests/optim/test_capture_memory.c: where replays put things: less memory than the step takes, no request to the pool or the system in steady state,
 * and the step's bits whatever else happens: handles that the program keeps, two graphs by turns, gradients that outlive the graph, writing in place.
 *
 * Between replays all memory that should hold nothing is filled with NaNs: whoever reads a result outside its time gets one. (Within a replay
 * AddressSanitizer does the same.) Replays that do not go as planned: test_capture_memory_odd.c.
 */
#include "capture_steps.h"
#include <stdatomic.h>

/* ---- requests to the system ------------------------------------------------------------------------------------------------------------ */

/* Of code in this program, in which the library is linked: not of OpenMP's and BLAS's own. */
static atomic_long calls;
#ifndef __SANITIZE_ADDRESS__
#ifndef __SANITIZE_THREAD__
#define COUNTS
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern const char __executable_start, etext;

static void note(const void *caller)
{
    if ((const char *)caller >= &__executable_start && (const char *)caller < &etext)
        atomic_fetch_add(&calls, 1);
}
#define NOTE() note(__builtin_return_address(0))
#define OURS __attribute__((noinline))

OURS void *malloc(size_t n)
{
    NOTE();
    return __libc_malloc(n);
}
OURS void *calloc(size_t n, size_t size)
{
    NOTE();
    return __libc_calloc(n, size);
}
OURS void *realloc(void *p, size_t n)
{
    NOTE();
    return __libc_realloc(p, n);
}
OURS void *aligned_alloc(size_t align, size_t n)
{
    NOTE();
    return __libc_memalign(align, n);
}
OURS int posix_memalign(void **p, size_t align, size_t n)
{
    NOTE();
    return (*p = __libc_memalign(align, n)) ? 0 : ENOMEM;
}
#endif
#endif

/* ---- bits, bytes, requests ------------------------------------------------------------------------------------------------------------------- */

static void less_memory(void **state)
{
    (void)state;
    for (kind of = 0; of < MODELS; of++)
        for (int half = 0; half < 2; half++) {
            TD_SCOPE();
            job a = begin(of);
            a.half = half;
            eager(&a);
            end(&a);
            job b = begin(of);
            b.half = half;
            td_graph *g = replays(&b, NULL);
            expect_same(name[of]);
            td_graph_figures f = td_graph_stats(g);
            if (f.planned <= 0 || f.planned >= f.eager || f.planned >= f.apart || f.fell || f.entries <= 0)
                fail_msg("%s: planned %lld, eager %lld, apart %lld bytes; %lld entries, %lld requests fell to the pool", name[of], (long long)f.planned,
                         (long long)f.eager, (long long)f.apart, (long long)f.entries, (long long)f.fell);
            print_message("%s%s: planned %lld, eager %lld, apart %lld bytes, %lld entries\n", name[of], half ? " in bf16" : "", (long long)f.planned,
                          (long long)f.eager, (long long)f.apart, (long long)f.entries);
            td_graph_free(g);
            end(&b);
        }
}

static void no_requests(void **state)
{
    (void)state;
    for (kind of = 0; of < MODELS; of++) {
        TD_SCOPE();
        td_tensor *in[2];
        job j = begin(of);
        td_graph *g = replays(&j, NULL);
        td_tensors inputs = batch(&j, 3, in);
        td_memory_stats before = td_memory();
        td__pool_fail_after(1);                /* the next request would be an error                                       */
        long was = calls;
        for (int i = 0; i < 3; i++)
            td_replay(g, inputs);
        long made = calls - was;
        td__pool_fail_after(-1);
        if (td_error_pending())
            fail_msg("%s: a replay asks the pool for memory: %s", name[of], td_error_message());
        if (made)
            fail_msg("%s: 3 replays asked the system %ld times", name[of], made);
        assert_int_equal(td_memory().live_bytes, before.live_bytes);
        td_graph_free(g);
        end(&j);
    }
#ifdef COUNTS
    long was = calls;
    void *volatile block = malloc(1);
    free(block);
    assert_int_equal(calls, was + 1);          /* they are counted                                                        */
#endif
}

/* ---- handles, turns, ends ---------------------------------------------------------------------------------------------------------------------- */

/* A result that the step keeps is the program's to read, and is written anew by each replay. */
static void kept_stays(void **state)
{
    (void)state;
    TD_SCOPE();
    job a = begin(CNN);
    a.keeps = true;
    eager(&a);
    end(&a);
    job b = begin(CNN);
    b.keeps = true;
    td_graph *g = replays(&b, NULL);
    expect_same("a result that is kept");
    td_release(b.kept);                        /* the graph still writes to it                                             */
    b.kept = NULL;
    once(g, &b, 3);
    td_graph_free(g);
    end(&b);
}

static void two_by_turns(void **state)
{
    (void)state;
    TD_SCOPE();
    job a = begin(GPT);
    eager(&a);
    end(&a);
    job b = begin(GPT);
    td_graph *g = first(&b, NULL), *other = NULL;
    job c = begin(RESNET);
    td_step_set(1);
    for (int s = 1; s < STEPS; s++) {
        int64_t now = td_step_get();
        if (!other)
            other = first(&c, NULL);
        else
            once(other, &c, s);
        td_step_set(now);                      /* dropout draws by the step                                               */
        got.loss[s] = once(g, &b, s);
    }
    got.loss[0] = want.loss[0];                /* the other's capture has written it                                       */
    look(&b, &got);
    expect_same("two graphs by turns");
    td_graph_free(g);
    once(other, &c, 3);
    td_graph_free(other);
    end(&b);
    end(&c);
}

/* The gradients of a replay stay until the optimizer is called, and longer than the graph. */
static void gradients_outlive(void **state)
{
    (void)state;
    TD_SCOPE();
    job a = begin(MLP);
    a.outside = true;
    eager(&a);
    end(&a);
    job b = begin(MLP);
    b.outside = true;
    td_graph *g = replays(&b, NULL);
    expect_same("an optimizer outside");
    td_tensor *in[2];
    td_replay(g, batch(&b, 3, in));
    td_tensors p = td_parameters(b.net);
    float before[CLASSES], after[CLASSES];
    td_copy_out(td_grad(p.list[p.n - 1]), before, sizeof before);
    spoil(g);
    td_graph_free(g);
    void *other[64];
    for (int i = 0; i < 64; i++)
        other[i] = memset(td__alloc((size_t)4000 * (size_t)(i + 1)), 0xff, (size_t)4000 * (size_t)(i + 1));
    td_copy_out(td_grad(p.list[p.n - 1]), after, sizeof after);
    assert_memory_equal(before, after, sizeof before);
    td_optim_step(b.opt);
    for (int i = 0; i < 64; i++)
        td__free(other[i]);
    end(&b);
}

/* The step is a forward; the program calls backward and the optimizer on what a replay returns: what nodes have saved is there. */
static td_tensor *forward_alone(td_tensors in, void *user)
{
    return loss_of(user, in);
}

static void backward_outside(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *in[2];
    job a = begin(CNN);
    eager(&a);
    end(&a);
    job b = begin(CNN);
    td_graph *g = td_capture(forward_alone, &b, batch(&b, 0, in), NULL);
    for (int s = 0; s < STEPS; s++) {
        spoil(g);
        td_tensor *loss = s ? td_replay(g, batch(&b, s, in)) : td_graph_result(g);
        got.loss[s] = (float)td_item(loss);
        td_backward(loss);
        td_optim_step(b.opt);
    }
    look(&b, &got);
    expect_same("a backward outside");
    td_graph_free(g);
    end(&b);
}

/* Verify calls the step between replays. */
static void verified(void **state)
{
    (void)state;
    for (kind of = 0; of < MODELS; of++) {
        TD_SCOPE();
        job a = begin(of);
        eager(&a);
        end(&a);
        job b = begin(of);
        td_graph *g = replays(&b, &(td_capture_opts){ .verify = 2 });
        expect_same("verify");
        td_graph_free(g);
        end(&b);
    }
}

/* ---- writing in place, empty batches ------------------------------------------------------------------------------------------------------------- */

/* Sums within the step, in memory that the step makes: read before it is written, written twice, written by parts. */
static td_tensor *sums(td_tensor *x)
{
    TD_NO_GRAD();
    td_tensor *sum = td_zeros(td_shape_of(x), TD_F32), *whole = td_empty(td_shape_of(x), TD_F32), *half = td_zeros(td_shape_of(x), TD_F32);
    for (int i = 0; i < 3; i++)
        td_assign(sum, td_add(sum, td_scale(x, 1 + i)));
    td_assign(whole, td_scale(sum, 0.5));
    td_assign(td_narrow(half, 0, 0, ROWS / 2), td_narrow(whole, 0, ROWS / 2, ROWS / 2));
    td_fill(td_narrow(half, 0, ROWS / 2, 1), 0.25);
    return half;
}

static td_tensor *in_place(job *j, td_tensor *x)
{
    (void)j;
    return td_add(x, td_mul(sums(x), td_full(TD_SCALAR, TD_F32, 0.125)));
}

static void in_place_within(void **state)
{
    (void)state;
    TD_SCOPE();
    job a = begin(CNN);
    a.between = in_place;
    eager(&a);
    end(&a);
    job b = begin(CNN);
    b.between = in_place;
    td_graph *g = replays(&b, &(td_capture_opts){ .verify = 3 });
    expect_same("in place");
    td_graph_free(g);
    end(&b);
}

static td_tensor *ignoring(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss = td_cross_entropy(td_forward(j->net, in.list[0]), in.list[1],
                                       &(td_cross_entropy_opts){ .has_ignore_index = true, .ignore_index = -100 });
    td_backward(loss);
    td_optim_step(j->opt);
    return loss;
}

/* A batch of weight 0 walks no node. */
static void empty_batches(void **state)
{
    (void)state;
    for (int captured = 0; captured < 2; captured++) {
        TD_SCOPE();
        td_tensor *in[2];
        job j = begin(CNN);
        td_graph *g = NULL;
        outcome *o = captured ? &got : &want;
        for (int s = 0; s < STEPS; s++) {
            batch(&j, s, in);
            if (s % 3 == 1)
                in[1] = td_full(TD_SHAPE(ROWS), TD_I64, -100);
            td_tensor *loss;
            if (!captured)
                loss = ignoring((td_tensors){ in, 2 }, &j);
            else if (!g)
                loss = td_graph_result(g = td_capture(ignoring, &j, (td_tensors){ in, 2 }, NULL));
            else
                spoil(g), loss = td_replay(g, (td_tensors){ in, 2 });
            o->loss[s] = s % 3 == 1 ? 0 : (float)td_item(loss);
        }
        look(&j, o);
        td_graph_free(g);
        end(&j);
    }
    expect_same("empty batches");
}

static void figures_of_nothing(void **state)
{
    (void)state;
    td_graph_figures f = td_graph_stats(NULL);
    assert_int_equal(td_error_pending(), TD_ERR_ARGUMENT);
    assert_int_equal(f.planned, 0);
    td_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(less_memory), TEST(no_requests), TEST(kept_stays), TEST(two_by_turns), TEST(gradients_outlive), TEST(backward_outside), TEST(verified),
        TEST(in_place_within), TEST(empty_batches), TEST(figures_of_nothing),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
