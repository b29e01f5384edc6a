/* tests/io/test_state.c: td_save and td_load: names, tied tensors, converted dtypes, and what does not fit. */
#include "io_test.h"

static td_module *net(void)
{
    return td_nn_sequential(td_nn_linear(3, 4, NULL), td_nn_batch_norm(4, NULL), td_nn_gelu(), td_nn_linear(4, 2, NULL));
}

static double sum_of(td_module *m)
{
    TD_SCOPE();
    double sum = 0;
    td_tensors lists[] = { td_parameters(m), td_buffers(m) };
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < lists[k].n; i++)
            for (int64_t j = 0; j < td_numel(lists[k].list[i]); j++)
                sum += (double)(j + 1) * ((const float *)td_data(lists[k].list[i]))[j];
    return sum;
}

/* The names and their order are those that PyTorch 2 prints for the same Sequential's state_dict (but for num_batches_tracked). */
static void names(void **state)
{
    static const char *const expected[] = { "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias" };
    td_module *m = net();
    assert_int_equal(td_save(m, path_of("m")), 0);
    td_safetensors *f = td_safetensors_open(path_of("m"));
    assert_int_equal(td_safetensors_count(f), TD_COUNT(expected));
    assert_string_equal(td_safetensors_metadata(f, "format"), "pt");
    for (size_t i = 0; i < TD_COUNT(expected); i++)
        assert_string_equal(td_safetensors_name(f, i), expected[i]);
    /* a part of it has names from there */
    assert_int_equal(td_save(td_module_get(m, "3"), path_of("part")), 0);
    f = td_safetensors_open(path_of("part"));
    assert_int_equal(td_safetensors_count(f), 2);
    assert_string_equal(td_safetensors_name(f, 1), "bias");
}

static void there_and_back(void **state)
{
    td_module *a = net(), *b = net();
    td_fill(td_parameter_get(a, "1.running_mean"), 0.25);
    assert_true(sum_of(a) != sum_of(b));
    assert_int_equal(td_save(a, path_of("m")), 0);
    assert_int_equal(td_load(b, path_of("m"), NULL), 0);
    td_tensors x = td_parameters(a), y = td_parameters(b);
    for (size_t i = 0; i < x.n; i++)
        assert_memory_equal(td_data(x.list[i]), td_data(y.list[i]), (size_t)td_numel(x.list[i]) * 4);
    assert_true(sum_of(a) == sum_of(b));
    assert_true(td_needs_grad(y.list[0]));
}

/* f16 in the file, f32 in the module. 0x3c00 is 1, 0xc000 is -2 (IEEE 754 binary16). */
static void converted(void **state)
{
    put_st("h", "{\"weight\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]},\"bias\":{\"dtype\":\"F64\",\"shape\":[1],"
                "\"data_offsets\":[4,12]},\"num_batches_tracked\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[12,20]}}",
           "\x00\x3c\x00\xc0\0\0\0\0\0\0\xf8\x3f\1\0\0\0\0\0\0\0", 20);
    td_module *m = td_nn_linear(2, 1, NULL);
    assert_int_equal(td_load(m, path_of("h"), NULL), 0);
    assert_true(td_at(td_parameter_get(m, "weight"), TD_SHAPE(0, 0)) == 1 && td_at(td_parameter_get(m, "weight"), TD_SHAPE(0, 1)) == -2);
    assert_true(td_item(td_parameter_get(m, "bias")) == 1.5);
}

typedef struct { td_module base; } pair;
static const td_module_type pair_type = { .kind = "pair", .size = sizeof(pair) };

/* Two names for one tensor: both are written; either is enough to read; two different ones are refused. */
static void tied(void **state)
{
    td_module *m = td_module_new(&pair_type);
    td_tensor *w = td_module_parameter(m, "in", td_full(TD_SHAPE(2), TD_F32, 7));
    td_module_parameter(m, "out", w);
    assert_int_equal(td_save(m, path_of("m")), 0);
    assert_int_equal(td_safetensors_count(td_safetensors_open(path_of("m"))), 2);
    td_fill(w, 0);
    assert_int_equal(td_load(m, path_of("m"), NULL), 0);
    assert_true(td_at(w, TD_SHAPE(1)) == 7);
    td_tensor *one = td_ones(TD_SHAPE(2), TD_F32), *two = td_full(TD_SHAPE(2), TD_F32, 2);
    assert_int_equal(td_safetensors_save(path_of("o"), &(td_named){ "out", one }, 1, NULL, 0), 0);
    assert_int_equal(td_load(m, path_of("o"), NULL), 0);
    assert_true(td_at(w, TD_SHAPE(1)) == 1);
    assert_int_equal(td_safetensors_save(path_of("d"), (td_named[]){ { "in", one }, { "out", two } }, 2, NULL, 0), 0);
    td_load(m, path_of("d"), NULL);
    expect_file_error(TD_ERR_SHAPE, "td_load", "d", " does not fit module \"pair\": \"in\" and \"out\" are one tensor in the module, but two in the file");
    assert_true(td_at(w, TD_SHAPE(1)) == 1);
}

static void what_does_not_fit(void **state)
{
    td_module *m = net();
    double before = sum_of(m);
    td_tensor *x = td_ones(TD_SHAPE(4, 3), TD_F32), *y = td_ones(TD_SHAPE(2), TD_I64), *z = td_ones(TD_SHAPE(5), TD_F32);
    assert_int_equal(td_safetensors_save(path_of("f"), (td_named[]){ { "0.weight", x }, { "3.bias", y }, { "0.bias", z }, { "other", x },
                                                                     { "1.num_batches_tracked", y } }, 5, NULL, 0), 0);
    td_load(m, path_of("f"), NULL);
    expect_file_error(TD_ERR_ARGUMENT, "td_load", "f",
                      " does not fit module \"sequential\": missing \"1.weight\", \"1.bias\", \"1.running_mean\" and 2 more; unexpected \"other\"; "
                      "\"0.bias\" is F32 (5), expected F32 (4); \"3.bias\" is I64 (2), expected F32 (2)");
    td_load(m, path_of("f"), &(td_load_opts){ .partial = true });
    expect_file_error(TD_ERR_SHAPE, "td_load", "f",
                      " does not fit module \"sequential\": \"0.bias\" is F32 (5), expected F32 (4); \"3.bias\" is I64 (2), expected F32 (2)");
    assert_true(sum_of(m) == before);          /* nothing has changed, "0.weight" among it */
    assert_int_equal(td_safetensors_save(path_of("g"), (td_named[]){ { "0.weight", x }, { "other", x } }, 2, NULL, 0), 0);
    assert_int_equal(td_load(m, path_of("g"), &(td_load_opts){ .partial = true }), 0);
    assert_true(td_at(td_parameter_get(m, "0.weight"), TD_SHAPE(3, 2)) == 1);
    before = sum_of(m);
    put("bad", "junk", 4);
    td_load(m, path_of("bad"), NULL);
    expect_file_error(TD_ERR_FORMAT, "td_load", "bad", ": at byte 0: expected 8 bytes with the header's length, but the file has 4");
    td_load(NULL, path_of("g"), NULL);
    expect_error(TD_ERR_ARGUMENT, "td_load: the module is NULL");
    assert_true(sum_of(m) == before);
}

/* A pending error stops a write: a good file is not replaced by what a broken step has left. */
static void pending(void **state)
{
    td_module *m = net();
    assert_int_equal(td_save(m, path_of("m")), 0);
    unsigned char a[4096], b[4096];
    size_t n = get("m", a, sizeof a);
    td_add(td_ones(TD_SHAPE(2), TD_F32), td_ones(TD_SHAPE(3), TD_F32));
    td_fill(td_parameter_get(m, "0.bias"), 99);
    assert_int_equal(td_save(m, path_of("m")), TD_ERR_SHAPE);
    td_error_clear();
    assert_int_equal(get("m", b, sizeof b), n);
    assert_memory_equal(a, b, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(names), TEST(there_and_back), TEST(converted), TEST(tied), TEST(what_does_not_fit), TEST(pending) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
