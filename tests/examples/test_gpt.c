/* tests/examples/test_gpt.c: 05_gpt's network: cached against uncached logits, checkpointing, its gradient, files in Hugging Face's
 * names, sampling.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "model.h"

static const gpt_opts small = { .layers = 2, .heads = 3, .width = 24, .context = 20, .vocab = 31 };

/* Every parameter drawn anew, so that two networks are equal, no bias is 0 and no matrix so small that its part is lost in rounding. */
static gpt *make(gpt_opts opts, td_dtype dtype)
{
    TD_SCOPE();
    gpt *net = gpt_new(&opts);
    assert_non_null(net);
    assert_int_equal(td_module_to(&net->base, dtype), 0);
    td_tensors all = td_parameters(&net->base);
    for (size_t i = 0; i < all.n; i++) {
        const char *name = td_parameter_name(all.list[i]);
        double about = strstr(name, "ln_") && strstr(name, "weight") ? 1 : 0;
        td_assign(all.list[i], td_shift(td_scale(td_randn(td_shape_of(all.list[i]), 17, i), 0.2), about));
    }
    return net;
}

static double largest_difference(td_tensor *a, td_tensor *b)
{
    TD_SCOPE();
    return td_item(td_amax(td_abs(td_sub(td_detach(a), td_detach(b))), NULL, 0, false));
}

static int begin(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    return 0;
}

static int end(void **state)
{
    assert_int_equal(td_error_pending(), 0);
    assert_int_equal(td_memory().live_tensors, 0);
    return 0;
}

/* One token at a time, and in pieces of any length: the logits of every place are those of the whole forward. */
static void cached_logits(void **state)
{
    TD_SCOPE();
    gpt *net = make(small, TD_F64);
    td_tensor *ids = td_randint(0, 31, TD_SHAPE(2, 20), 3, 0), *whole = td_detach(gpt_logits(net, ids));
    for (int64_t piece = 1; piece <= 20; piece += 3) {
        gpt_cache *c = gpt_cache_new(net, 2);
        for (int64_t at = 0; at < 20; at += piece) {
            TD_SCOPE();
            int64_t n = at + piece <= 20 ? piece : 20 - at;
            td_tensor *next = gpt_next(net, c, td_narrow(ids, 1, at, n));
            td_tensor *want = td_reshape(td_narrow(whole, 1, at + n - 1, 1), TD_SHAPE(2, 31));
            assert_true(largest_difference(next, want) < 1e-12);
        }
        gpt_cache_free(c);
    }
    /* causal: a later token changes nothing before it */
    td_tensor *other = td_concat((td_tensor *[]){ td_narrow(ids, 1, 0, 19), td_full(TD_SHAPE(2, 1), TD_I64, 0) }, 2, 1);
    td_tensor *changed = td_detach(gpt_logits(net, other));
    assert_true(largest_difference(td_narrow(whole, 1, 0, 19), td_narrow(changed, 1, 0, 19)) == 0);
    td_module_free(&net->base);
}

static void generation(void **state)
{
    gpt *net = make(small, TD_F32);
    const int64_t prompt[] = { 4, 7, 1 };
    int64_t a[60], b[60];
    const gpt_sampling how = { .temperature = 0.9, .top_k = 8 };
    assert_int_equal(gpt_generate(net, prompt, 3, a, 60, &how, 11), 0);      /* three times the context                      */
    assert_int_equal(gpt_generate(net, prompt, 3, b, 60, &how, 11), 0);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(gpt_generate(net, prompt, 3, b, 60, &how, 12), 0);
    assert_memory_not_equal(a, b, sizeof a);
    for (int i = 0; i < 60; i++)
        assert_in_range(b[i], 0, 30);
    /* the most likely token, against the uncached network, until the context is full */
    assert_int_equal(gpt_generate(net, prompt, 3, a, 17, &(gpt_sampling){ .temperature = -1 }, 0), 0);
    int64_t all[20] = { 4, 7, 1 };
    memcpy(all + 3, a, 17 * sizeof *a);
    {
        TD_SCOPE();
        TD_NO_GRAD();
        td_tensor *best = td_argmax(gpt_logits(net, td_from(all, TD_SHAPE(1, 20), TD_I64)), 2);
        for (int i = 0; i < 17; i++)
            assert_int_equal(td_at(best, TD_SHAPE(0, i + 2)), a[i]);
    }
    td_module_free(&net->base);
}

/* exp(logits) are 1, 2, 5 and 2 tenths: the borders of u are where they add up to. */
static void sampling(void **state)
{
    const double logits[] = { log(1.0) + 700, log(2.0) + 700, log(5.0) + 700, log(2.0) + 700 };
    const struct { gpt_sampling how; double u; int64_t want; } rows[] = {
        { { 0 }, 0, 0 },           { { 0 }, 0.099, 0 },       { { 0 }, 0.101, 1 },       { { 0 }, 0.299, 1 },     { { 0 }, 0.301, 2 },
        { { 0 }, 0.799, 2 },       { { 0 }, 0.801, 3 },       { { 0 }, 0.999999, 3 },    { { -1, 0 }, 0.99, 2 },  { { 1, 1 }, 0.99, 2 },
        { { 1, 2 }, 0.01, 1 },     { { 1, 2 }, 0.99, 3 },     { { 1, 3 }, 0.01, 1 },     { { 1, 9 }, 0.01, 0 },
        { { 0.5, 0 }, 0.03, 1 },   { { 0.5, 0 }, 0.028, 0 },  { { 0.5, 0 }, 0.146, 1 },  { { 0.5, 0 }, 0.149, 2 },   /* 1 4 25 4 of 34 */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (gpt_sample(logits, 4, &rows[i].how, rows[i].u) != rows[i].want)
            fail_msg("row %zu: expected %lld", i, (long long)rows[i].want);
}

/* A step's gradients with checkpointing are the bits of those without, dropout included. */
static void checkpointing(void **state)
{
    gpt_opts opts = small;
    opts.dropout = 0.2;
    td_tensor *kept[64];
    double loss[2];
    size_t n = 0;
    for (int on = 0; on < 2; on++) {
        TD_SCOPE();
        opts.checkpointing = on;
        gpt *net = make(opts, TD_F32);
        td_step_set(0);
        td_samples(td_arange(3, TD_I64));
        td_tensor *x = td_randint(0, 31, TD_SHAPE(3, 15), 3, 0), *y = td_randint(0, 31, TD_SHAPE(3, 15), 3, 1);
        td_tensor *l = gpt_loss(net, x, y);
        loss[on] = td_item(l);
        assert_int_equal(td_backward(l), 0);
        td_tensors all = td_parameters(&net->base);
        assert_true(all.n <= 64);
        for (size_t i = 0; i < all.n; i++) {
            td_tensor *g = td_grad(all.list[i]);
            assert_non_null(g);
            if (!on) {
                kept[n++] = td_keep(td_empty(td_shape_of(g), TD_F32));
                td_assign(kept[i], g);
            } else {
                assert_memory_equal(td_data(g), td_data(kept[i]), (size_t)td_numel(g) * sizeof(float));
                td_release(kept[i]);
            }
        }
        td_samples(NULL);
        td_module_free(&net->base);
    }
    assert_true(loss[0] == loss[1]);
}

typedef struct { gpt *net; td_tensor *x, *y; } checked;

static td_tensor *loss_of(td_tensor *const *inputs, size_t n, void *user)
{
    const checked *c = user;
    return gpt_loss(c->net, c->x, c->y);
}

static void gradient(void **state)
{
    TD_SCOPE();
    gpt *net = make((gpt_opts){ .layers = 1, .heads = 2, .width = 4, .context = 5, .vocab = 7 }, TD_F64);
    checked c = { net, td_randint(0, 7, TD_SHAPE(2, 4), 3, 0), td_randint(0, 7, TD_SHAPE(2, 4), 3, 1) };
    td_tensors all = td_parameters(&net->base);
    assert_int_equal(td_gradcheck(loss_of, &c, all.list, all.n, NULL), 0);
    td_module_free(&net->base);
}

/* ---- files ------------------------------------------------------------------------------------------------------------------- */

static char path[64];

static int begin_file(void **state)
{
    strcpy(path, "/tmp/tandem-gpt-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    return begin(state);
}

static int end_file(void **state)
{
    unlink(path);
    return end(state);
}

/* The model's tensors as GPT2LMHeadModel names them, with a mask and (tied or not) a head. */
static void save_as_head_model(gpt *net, bool same_head)
{
    TD_SCOPE();
    td_tensors all = td_parameters(&net->base);
    char name[64][96];
    td_named list[64];
    size_t n = 0;
    for (; n < all.n; n++) {
        snprintf(name[n], sizeof name[n], "transformer.%s", td_parameter_name(all.list[n]));
        list[n] = (td_named){ name[n], all.list[n] };
    }
    td_tensor *table = td_detach(td_parameter_get(&net->base, "wte.weight"));
    list[n++] = (td_named){ "lm_head.weight", same_head ? table : td_scale(table, 2) };
    list[n++] = (td_named){ "transformer.h.0.attn.bias", td_ones(TD_SHAPE(1, 1, 20, 20), TD_U8) };
    list[n++] = (td_named){ "transformer.h.1.attn.masked_bias", td_full(TD_SCALAR, TD_F32, -1e4) };
    assert_int_equal(td_safetensors_save(path, list, n, NULL, 0), 0);
}

static void files(void **state)
{
    TD_SCOPE();
    td_tensor *ids = td_randint(0, 31, TD_SHAPE(2, 9), 3, 0);
    gpt *net = make(small, TD_F32);
    td_tensor *want = td_detach(gpt_logits(net, ids));
    for (int way = 0; way < 2; way++) {
        if (way == 0)
            assert_int_equal(gpt_save(net, path), 0);
        else
            save_as_head_model(net, true);
        gpt_opts opts = { 0 };
        assert_int_equal(gpt_shape_of(path, &opts), 0);
        assert_int_equal(opts.heads, way == 0 ? 3 : 0);
        opts.heads = 3;
        td_seed(99);
        gpt *other = gpt_new(&opts);
        assert_true(other->opts.layers == 2 && other->opts.width == 24 && other->opts.context == 20 && other->opts.vocab == 31);
        assert_true(largest_difference(gpt_logits(other, ids), want) > 0.1);
        assert_int_equal(gpt_load(other, path), 0);
        assert_true(largest_difference(gpt_logits(other, ids), want) == 0);
        td_module_free(&other->base);
    }
    /* what is no such model changes nothing */
    save_as_head_model(net, false);
    assert_int_equal(gpt_load(net, path), TD_ERR_FORMAT);
    gpt *wider = make((gpt_opts){ .layers = 2, .heads = 3, .width = 27, .context = 20, .vocab = 31 }, TD_F32);
    gpt *deeper = make((gpt_opts){ .layers = 3, .heads = 3, .width = 24, .context = 20, .vocab = 31 }, TD_F32);
    assert_int_equal(gpt_save(net, path), 0);
    assert_int_equal(gpt_load(wider, path), TD_ERR_FORMAT);
    assert_int_equal(gpt_load(deeper, path), TD_ERR_FORMAT);
    assert_int_equal(gpt_save(deeper, path), 0);
    assert_int_equal(gpt_load(net, path), TD_ERR_FORMAT);
    assert_true(largest_difference(gpt_logits(net, ids), want) == 0);
    assert_int_equal(td_npy_save(path, ids), 0);
    assert_int_equal(gpt_load(net, path), TD_ERR_FORMAT);          /* the library's own sentence this time */
    td_error_clear();
    gpt_opts opts = { 0 };
    assert_int_equal(gpt_shape_of(path, &opts), TD_ERR_FORMAT);
    td_error_clear();
    td_module_free(&deeper->base);
    td_module_free(&wider->base);
    td_module_free(&net->base);
}

static void shapes(void **state)
{
    gpt_opts o = { 0 };
    assert_true(gpt_preset("124M", &o));
    assert_false(gpt_preset("125M", &o));
    /* GPT-2's 124,439,808 without eleven of its blocks of 7,087,872 and most of its words */
    o.layers = 1;
    o.vocab = 100;
    gpt *net = gpt_new(&o);
    assert_int_equal(net->opts.heads, 12);
    assert_int_equal(gpt_parameters(net), 124439808 - 11 * 7087872 - (50257 - 100) * 768);
    td_module_free(&net->base);
    assert_null(gpt_new(&(gpt_opts){ .width = 10, .heads = 3 }));
    assert_null(gpt_new(&(gpt_opts){ .layers = 257 }));
    assert_null(gpt_new(&(gpt_opts){ .dropout = 1 }));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(cached_logits), TEST(generation), TEST(sampling), TEST(checkpointing), TEST(gradient),
        cmocka_unit_test_setup_teardown(files, begin_file, end_file), TEST(shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
