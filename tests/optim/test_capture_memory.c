/* tests/optim/test_capture_memory.c: where replays put things: less memory than the step takes, no request to the pool or the system in steady state,
 * and the step's bits whatever else happens: handles that the program keeps, two graphs by turns, errors in the middle, requests that differ from
 * replay to replay, blocks that live longer than they did, gradients that outlive the graph.
 *
 * Between replays all memory that should hold nothing is filled with NaNs: whoever reads a result outside its time gets one. (Within a replay
 * AddressSanitizer does the same.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <capture.h>
#include <nn_impl.h>
#include <optim_impl.h>
#include "../../examples/05_gpt/model.h"
#include "../../examples/06_resnet/model.h"

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

/* ---- steps -------------------------------------------------------------------------------------------------------------------------------- */

enum { ROWS = 8, CLASSES = 10, TOKENS = 32, STEPS = 8, MOST = 1 << 21 };
typedef enum { MLP, CNN, RESNET, GPT, MODELS } kind;
static const char *const name[MODELS] = { "MLP", "CNN", "ResNet", "GPT" };

typedef struct job job;
struct job {
    kind of;
    td_module *net;
    gpt *text;
    td_optim *opt;
    td_tensor *kept;                           /* a result that the step keeps                                               */
    bool keeps, half, outside;                 /* outside: the optimizer is called after the replay                           */
    td_tensor *(*between)(job *j, td_tensor *x);               /* NULL, or an operation more before the loss                   */
};

static job begin(kind of)
{
    job j = { .of = of };
    td_seed(5);
    td_step_set(0);
    td_samples(NULL);
    switch (of) {
    case MLP:
        j.net = td_nn_sequential(td_nn_linear(40, 300, NULL), td_nn_gelu(), td_nn_layer_norm(TD_SHAPE(300), NULL), td_nn_dropout(0.3),
                                 td_nn_linear(300, 300, NULL), td_nn_tanh(), td_nn_linear(300, CLASSES, NULL));
        break;
    case CNN:
        j.net = td_nn_sequential(td_nn_conv2d(3, 16, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_batch_norm(16, NULL), td_nn_relu(),
                                 td_nn_conv2d(16, 16, 3, NULL), td_nn_relu(), td_nn_max_pool2d(2, NULL), td_nn_dropout(0.25), td_nn_flatten(),
                                 td_nn_linear(784, 64, NULL), td_nn_silu(), td_nn_linear(64, CLASSES, NULL));
        break;
    case RESNET:
        j.net = resnet_new(&(resnet_opts){ .depth = 18, .width = 4, .channels = 3, .classes = CLASSES });
        break;
    default:
        j.text = gpt_new(&(gpt_opts){ .layers = 2, .width = 64, .heads = 2, .context = TOKENS, .vocab = 96, .dropout = 0.1 });
        j.net = &j.text->base;
    }
    for (size_t i = 0; i < td_parameters(j.net).n; i++) {      /* numbers of initialisation are counted over the process        */
        TD_NO_GRAD();
        TD_SCOPE();
        td_tensor *p = td_parameters(j.net).list[i];
        td_assign(p, td_scale(td_randn(td_shape_of(p), 3, i), 0.1));
    }
    j.opt = td_adamw_new(td_parameters(j.net), &(td_adamw_opts){ .lr = 3e-3, .weight_decay = 0.1 });
    return j;
}

static void end(job *j)
{
    td_samples(NULL);
    td_release(j->kept);
    td_optim_free(j->opt);
    td_module_free(j->net);
}

static td_tensors batch(const job *j, int s, td_tensor *into[2])
{
    int64_t target[ROWS * TOKENS], ids[ROWS * TOKENS];
    for (int i = 0; i < ROWS * TOKENS; i++) {
        target[i] = (3 * i + s) % CLASSES;
        ids[i] = (7 * i + 3 * s) % 96;
    }
    if (j->of == GPT) {
        into[0] = td_from(ids, TD_SHAPE(ROWS, TOKENS), TD_I64);
        into[1] = td_from(target, TD_SHAPE(ROWS, TOKENS), TD_I64);
    } else {
        into[0] = td_randn(j->of == MLP ? TD_SHAPE(ROWS, 40) : j->of == CNN ? TD_SHAPE(ROWS, 3, 16, 16) : TD_SHAPE(ROWS, 3, 12, 12), 5, (uint64_t)s);
        into[1] = td_from(target, TD_SHAPE(ROWS), TD_I64);
    }
    return (td_tensors){ into, 2 };
}

static td_tensor *loss_of(job *j, td_tensors in)
{
    TD_AUTOCAST(j->half ? TD_BF16 : TD_F32);
    if (j->of == GPT)
        return td_escape(gpt_loss(j->text, in.list[0], in.list[1]));
    td_tensor *y = td_forward(j->net, in.list[0]);
    if (j->keeps && !j->kept)
        j->kept = td_keep(td_exp(y));
    if (j->between)
        y = j->between(j, y);
    return td_escape(td_cross_entropy(y, in.list[1], NULL));
}

static td_tensor *step(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss = loss_of(j, in);
    td_backward(loss);
    if (!j->outside)
        td_optim_step(j->opt);
    return loss;
}

/* ---- what a run leaves -------------------------------------------------------------------------------------------------------------------- */

typedef struct { char bytes[MOST]; size_t n; float loss[STEPS]; } outcome;
static outcome want, got;

static void look(job *j, outcome *o)
{
    o->n = 0;
    td_tensors lists[] = { td_parameters(j->net), td_buffers(j->net), { &j->kept, j->kept != NULL } };
    for (size_t l = 0; l < TD_COUNT(lists); l++)
        for (size_t i = 0; i < lists[l].n; i++) {
            size_t n = (size_t)td_numel(lists[l].list[i]) * td_dtype_size(td_dtype_of(lists[l].list[i]));
            assert_true(o->n + n <= sizeof o->bytes);
            assert_int_equal(td_copy_out(lists[l].list[i], o->bytes + o->n, n), 0);
            o->n += n;
        }
}

static void expect_same(const char *what)
{
    for (int s = 0; s < STEPS; s++)
        if (memcmp(&want.loss[s], &got.loss[s], 4))
            fail_msg("%s: loss %d is %.9g, expected %.9g", what, s, got.loss[s], want.loss[s]);
    assert_int_equal(want.n, got.n);
    for (size_t i = 0; i < want.n; i++)
        if (want.bytes[i] != got.bytes[i])
            fail_msg("%s: byte %zu of %zu of what is left differs", what, i, want.n);
    assert_string_equal(td_error_pending() ? td_error_message() : "", "");
}

static void eager(job *j)
{
    for (int s = 0; s < STEPS; s++) {
        TD_SCOPE();
        td_tensor *in[2];
        if (j->kept)
            td_release(j->kept);
        j->kept = NULL;
        want.loss[s] = (float)td_item(step(batch(j, s, in), j));
        if (j->outside)
            td_optim_step(j->opt);
    }
    look(j, &want);
}

/* What nobody should read is not a number. */
static void spoil(const td_graph *g)
{
    const td__pool_plan *p = td__placing_plan(g);
    if (!p || td__pool_plan_busy((td__pool_plan *)(uintptr_t)p))
        return;
    for (uint32_t i = 0; i < p->places; i++)
        if (p->place[i].order != TD__POOL_NEVER) {
            TD__UNPOISON(p->memory + p->place[i].at, TD__POOL_HEADER + p->place[i].bytes);
            memset(p->memory + p->place[i].at, 0xff, TD__POOL_HEADER + p->place[i].bytes);
            TD__POISON(p->memory + p->place[i].at, TD__POOL_HEADER + p->place[i].bytes);
        }
    for (uint32_t i = 0; i < p->stretches; i++) {
        TD__UNPOISON(p->memory + p->stretch[i].at, p->stretch[i].bytes);
        memset(p->memory + p->stretch[i].at, 0xff, p->stretch[i].bytes);
    }
}

static float once(td_graph *g, job *j, int s)
{
    TD_SCOPE();
    td_tensor *in[2];
    spoil(g);
    float loss = (float)td_item(td_replay(g, batch(j, s, in)));
    if (j->outside)
        td_optim_step(j->opt);
    return loss;
}

static td_graph *first(job *j, const td_capture_opts *opts)
{
    TD_SCOPE();
    td_tensor *in[2];
    td_graph *g = td_capture(step, j, batch(j, 0, in), opts);
    got.loss[0] = (float)td_item(td_graph_result(g));
    if (j->outside)
        td_optim_step(j->opt);
    return g;
}

static td_graph *replays(job *j, const td_capture_opts *opts)
{
    td_graph *g = first(j, opts);
    for (int s = 1; s < STEPS; s++)
        got.loss[s] = once(g, j, s);
    look(j, &got);
    return g;
}

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

static int quietly(void **state)
{
    (void)state;
    td_errors(TD_ERRORS_RETURN);
    return 0;
}

static int nothing_left(void **state)
{
    (void)state;
    td__autocast_drop();
    assert_int_equal(td_memory().live_tensors, 0);
    assert_int_equal(td__live_nodes(), 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(less_memory, nothing_left),       cmocka_unit_test_teardown(no_requests, nothing_left),
        cmocka_unit_test_teardown(kept_stays, nothing_left),        cmocka_unit_test_teardown(two_by_turns, nothing_left),
        cmocka_unit_test_teardown(gradients_outlive, nothing_left), cmocka_unit_test_teardown(backward_outside, nothing_left),
        cmocka_unit_test_teardown(verified, nothing_left),          cmocka_unit_test_teardown(right_all_the_same, nothing_left),
        cmocka_unit_test_teardown(after_an_error, nothing_left),    cmocka_unit_test_teardown(without_memory, nothing_left),
        cmocka_unit_test_teardown(in_place_within, nothing_left),   cmocka_unit_test_teardown(empty_batches, nothing_left),
        cmocka_unit_test_teardown(figures_of_nothing, nothing_left),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
