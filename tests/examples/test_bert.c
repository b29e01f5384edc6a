/* tests/examples/test_bert.c: 07_bert against outputs of PyTorch's (golden/bert, made by golden/bert.py), its padding, its files' names, its word
 * pieces.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "model.h"
#include "wordpiece.h"

static char why[1024];

static const char *golden(const char *name)
{
    static char path[4][4096];
    static int next;
    char *at = path[next++ % 4];
    snprintf(at, sizeof path[0], "%s/%s", GOLDEN, name);
    return at;
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

static bert *load(td_dtype dtype)
{
    bert_opts opts = { .classes = 3 };
    assert_true(bert_config_read(golden("config.json"), &opts, why, sizeof why));
    assert_int_equal(opts.heads, 2);
    bert *b = bert_new(&opts);
    td_module_to(&b->base, dtype);
    assert_true(bert_load(b, golden("model.safetensors"), why, sizeof why));
    assert_string_equal(why, "");
    td_train(&b->base, false);
    return b;
}

/* The largest difference over the largest value. */
static double distance(td_tensor *x, td_tensor *expected)
{
    TD_SCOPE();
    td_tensor *off = td_amax(td_abs(td_sub(td_cast(x, TD_F64), expected)), NULL, 0, false);
    return td_item(off) / td_item(td_amax(td_abs(expected), NULL, 0, false));
}

/* f32: 20 steps of sums of 32 terms, each rounding relative 2^-24, at 8 standard deviations: 8 * sqrt(2 * 20 * 32) * 2^-24. */
static void pytorch_outputs(void **state)
{
    static const struct { td_dtype dtype; double bound; } way[] = { { TD_F64, 1e-10 }, { TD_F32, 1.8e-5 } };
    for (size_t i = 0; i < 2; i++) {
        TD_SCOPE();
        TD_NO_GRAD();
        bert *b = load(way[i].dtype);
        td_safetensors *in = td_safetensors_open(golden("inputs.safetensors")), *out = td_safetensors_open(golden("outputs_f64.safetensors"));
        td_tensor *pooled, *hidden = bert_forward(b, td_safetensors_get(in, "input_ids"), td_safetensors_get(in, "token_type_ids"),
                                                  td_safetensors_get(in, "attention_mask"), &pooled);
        assert_true(distance(hidden, td_safetensors_get(out, "last_hidden_state")) < way[i].bound);
        assert_true(distance(pooled, td_safetensors_get(out, "pooler_output")) < way[i].bound);
        assert_true(distance(bert_classify(b, pooled), td_safetensors_get(out, "logits")) < way[i].bound);
        td_safetensors_free(in);
        td_safetensors_free(out);
        td_module_free(&b->base);
    }
}

/* What stands in padded places does not matter to the real ones; without a mask it does. */
static void padding(void **state)
{
    TD_SCOPE();
    TD_NO_GRAD();
    bert *b = load(TD_F64);
    td_tensor *one = td_from((int64_t[]){ 3, 7, 9, 1, 1 }, TD_SHAPE(1, 5), TD_I64), *two = td_from((int64_t[]){ 3, 7, 9, 20, 0 }, TD_SHAPE(1, 5), TD_I64);
    td_tensor *mask = td_from((bool[]){ true, true, true, false, false }, TD_SHAPE(1, 5), TD_BOOL), *a, *c;
    bert_forward(b, one, NULL, mask, &a);
    bert_forward(b, two, NULL, mask, &c);
    assert_true(distance(a, c) == 0);
    bert_forward(b, one, NULL, NULL, &a);
    assert_true(distance(a, c) > 1e-3);
    bert_forward(b, td_narrow(one, 1, 0, 3), td_zeros(TD_SHAPE(1, 3), TD_I64), NULL, &a);
    assert_true(distance(a, c) < 1e-13);
    td_module_free(&b->base);
}

static td_tensor *pooled_loss(td_tensor *const *inputs, size_t n, void *user)
{
    bert *b = user;
    td_tensor *ids = td_from((int64_t[]){ 3, 7, 9, 1, 8, 0 }, TD_SHAPE(2, 3), TD_I64), *pooled;
    td_tensor *mask = td_from((bool[]){ true, true, true, true, true, false }, TD_SHAPE(2, 3), TD_BOOL);
    td_tensor *hidden = bert_forward(b, ids, NULL, mask, &pooled);
    td_tensor *words = bert_name_tokens(b, hidden, td_from((int64_t[]){ 1, 4 }, TD_SHAPE(2), TD_I64));
    return td_add(td_mean(td_mul(words, words), NULL, 0, false), td_mean(pooled, NULL, 0, false));
}

/* All parameters against finite differences, the tied word embeddings of the head among them. */
static void gradients(void **state)
{
    TD_SCOPE();
    bert *b = bert_new(&(bert_opts){ .layers = 2, .hidden = 4, .heads = 2, .intermediate = 3, .vocab = 10, .positions = 3, .pad = -1,
                                     .masked_lm = true, .init = 0.4 });
    td_module_to(&b->base, TD_F64);
    td_tensors p = td_parameters(&b->base);
    assert_int_equal(td_gradcheck(pooled_loss, b, p.list, p.n, NULL), 0);
    td_zero_grad(p);
    td_module_free(&b->base);
}

/* A folder of ours reads back; a file that lacks a head says so; one that does not fit is refused. */
static void folders(void **state)
{
    TD_SCOPE();
    char file[] = "/tmp/bert-XXXXXX";
    close(mkstemp(file));
    bert *b = load(TD_F32), *other;
    assert_true(bert_config_write(file, b, why, sizeof why));
    bert_opts opts = { 0 };
    assert_true(bert_config_read(file, &opts, why, sizeof why));
    opts.classes = 3;
    opts.dropout = b->opts.dropout;
    assert_memory_equal(&opts, &b->opts, sizeof opts);
    assert_int_equal(td_save(&b->base, file), 0);
    other = bert_new(&opts);
    assert_true(bert_load(other, file, why, sizeof why));
    td_tensors p = td_parameters(&b->base), q = td_parameters(&other->base);
    assert_int_equal(p.n, q.n);
    for (size_t i = 0; i < p.n; i++)
        assert_memory_equal(td_data(p.list[i]), td_data(q.list[i]), (size_t)td_numel(p.list[i]) * 4);
    td_module_free(&other->base);

    opts.masked_lm = true;
    other = bert_new(&opts);
    assert_true(bert_load(other, file, why, sizeof why));
    assert_string_equal(why, "cls");
    td_module_free(&other->base);
    opts.hidden = 8;
    other = bert_new(&opts);
    assert_false(bert_load(other, file, why, sizeof why));
    assert_non_null(strstr(why, "\"embeddings.word_embeddings.weight\" is f32 (40,16), expected floats (40,8)"));
    td_module_free(&other->base);
    opts.hidden = 16;
    opts.layers = 3;
    other = bert_new(&opts);
    assert_false(bert_load(other, file, why, sizeof why));
    assert_non_null(strstr(why, "the tensor \"encoder.layer.2.attention.self.query.weight\" is missing"));
    td_module_free(&other->base);
    td_module_free(&b->base);
    unlink(file);
}

static void refused(const char *text, const char *sentence)
{
    char file[] = "/tmp/bert-XXXXXX";
    int fd = mkstemp(file);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    bert_opts opts = { 0 };
    assert_false(bert_config_read(file, &opts, why, sizeof why));
    if (!strstr(why, sentence))
        fail_msg("\"%s\" is not in \"%s\"", sentence, why);
    unlink(file);
}

static void bad_configurations(void **state)
{
    refused("{", "near end of file");
    refused("[]", "no object");
    refused("{\"model_type\": \"roberta\"}", "\"model_type\" is \"roberta\", expected \"bert\"");
    refused("{\"hidden_act\": \"mish\"}", "\"hidden_act\" is \"mish\", expected gelu");
    refused("{\"hidden_size\": 10, \"num_attention_heads\": 3}", "\"num_attention_heads\" does not divide \"hidden_size\"");
    refused("{\"hidden_size\": -1}", "\"hidden_size\" is no whole number");
    refused("{\"num_hidden_layers\": 0}", "\"num_hidden_layers\" is 0");
    refused("{\"is_decoder\": true}", "\"is_decoder\" is true");
    refused("{\"position_embedding_type\": \"relative_key\"}", "expected \"absolute\"");
    refused("{\"pad_token_id\": 30522}", "\"pad_token_id\" is not below \"vocab_size\"");
}

/* Greedy longest match, worked by hand; then a built vocabulary leaves nothing of its text unknown. */
static void word_pieces(void **state)
{
    char file[] = "/tmp/bert-XXXXXX";
    int fd = mkstemp(file);
    static const char vocab[] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nun\n##aff\n##able\n,\nthe\n##a\n";
    assert_int_equal(write(fd, vocab, sizeof vocab - 1), sizeof vocab - 1);
    close(fd);
    wordpiece *w = wordpiece_read(file, why, sizeof why);
    assert_non_null(w);
    int64_t ids[9];
    static const char text[] = "  The unaffable,qThe";
    assert_int_equal(wordpiece_encode(w, text, strlen(text), ids, 9), 8);
    assert_memory_equal(ids, ((int64_t[]){ 2, 9, 5, 6, 7, 8, 1, 3, 0 }), sizeof ids);
    assert_int_equal(wordpiece_encode(w, text, strlen(text), ids, 4), 4);
    assert_memory_equal(ids, ((int64_t[]){ 2, 9, 5, 3 }), 4 * sizeof *ids);
    assert_int_equal(wordpiece_encode(w, "", 0, ids, 3), 2);
    wordpiece_free(w);

    static const char all[] = "In the beginning was the Word, and the Word was with God.";
    w = wordpiece_build(all, strlen(all), 70, why, sizeof why);
    assert_non_null(w);
    assert_true(wordpiece_count(w) <= 70);
    assert_true(wordpiece_id(w, "the") > 0 && wordpiece_id(w, "##g") > 0);
    int64_t many[64], n = wordpiece_encode(w, all, strlen(all), many, 64);
    for (int64_t i = 0; i < n; i++)
        assert_int_not_equal(many[i], 1);
    assert_true(wordpiece_write(w, file));
    wordpiece *same = wordpiece_read(file, why, sizeof why);
    assert_int_equal(wordpiece_count(same), wordpiece_count(w));
    wordpiece_free(same);
    wordpiece_free(w);
    assert_null(wordpiece_build(all, strlen(all), 20, why, sizeof why));
    assert_non_null(strstr(why, "is too small"));
    assert_null(wordpiece_read("/nowhere/vocab.txt", why, sizeof why));
    unlink(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pytorch_outputs, begin, end), cmocka_unit_test_setup_teardown(padding, begin, end),
        cmocka_unit_test_setup_teardown(gradients, begin, end),       cmocka_unit_test_setup_teardown(folders, begin, end),
        cmocka_unit_test_setup_teardown(bad_configurations, begin, end), cmocka_unit_test_setup_teardown(word_pieces, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
