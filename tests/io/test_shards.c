/* tests/io/test_shards.c: td_save_sharded and an index of safetensors files: names, sizes, what other programs read, and hostile indices. */
#include <jansson.h>
#include <unistd.h>
#include "io_test.h"

/* 3*4+4 and 4*2+2 floats, and batch norm's 4*4: 64, 40 and 64 bytes */
static td_module *net(void)
{
    return td_nn_sequential(td_nn_linear(3, 4, NULL), td_nn_batch_norm(4, NULL), td_nn_gelu(), td_nn_linear(4, 2, NULL));
}

static void expect_equal(td_module *a, td_module *b)
{
    td_tensors lists[][2] = { { td_parameters(a), td_parameters(b) }, { td_buffers(a), td_buffers(b) } };
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < lists[k][0].n; i++)
            assert_memory_equal(td_data(lists[k][0].list[i]), td_data(lists[k][1].list[i]), (size_t)td_numel(lists[k][0].list[i]) * 4);
}

/* The rule by hand: 0.weight 48, 0.bias 16 | 1.* 16 each: four of them | 3.weight 32, 3.bias 8. */
static void there_and_back(void **state)
{
    td_module *m = net(), *n = net();
    td_fill(td_parameter_get(m, "1.running_var"), 3);
    assert_int_equal(td_save_sharded(m, path_of("model.safetensors"), &(td_save_opts){ .max_shard_bytes = 64 }), 0);
    assert_int_equal(access(path_of("model.safetensors"), F_OK), -1);
    json_t *index = json_load_file(path_of("model.safetensors.index.json"), 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")), 64 + 64 + 40);
    json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), 8);
    assert_string_equal(json_string_value(json_object_get(map, "0.bias")), "model-00001-of-00003.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "1.weight")), "model-00002-of-00003.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "1.running_var")), "model-00002-of-00003.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "3.weight")), "model-00003-of-00003.safetensors");
    json_decref(index);
    td_safetensors *f = td_safetensors_open(path_of("model-00001-of-00003.safetensors"));
    assert_int_equal(td_safetensors_count(f), 2);
    assert_string_equal(td_safetensors_metadata(f, "format"), "pt");
    assert_int_equal(td_load(n, path_of("model.safetensors.index.json"), NULL), 0);
    expect_equal(m, n);
    td_fill(td_parameter_get(n, "0.weight"), 0);
    assert_int_equal(td_load(n, path_of("model.safetensors"), NULL), 0);     /* the name it was saved under */
    expect_equal(m, n);
    /* what fits into one file is one, and the index is gone; and back again */
    td_fill(td_parameter_get(m, "0.weight"), 7);
    assert_int_equal(td_save_sharded(m, path_of("model.safetensors"), NULL), 0);
    assert_int_equal(access(path_of("model.safetensors.index.json"), F_OK), -1);
    assert_int_equal(td_load(n, path_of("model.safetensors"), NULL), 0);
    expect_equal(m, n);
    assert_int_equal(td_save_sharded(m, path_of("model.safetensors"), &(td_save_opts){ .max_shard_bytes = 1 }), 0);
    assert_int_equal(access(path_of("model.safetensors"), F_OK), -1);
    assert_int_equal(access(path_of("model-00008-of-00008.safetensors"), F_OK), 0);
    td_fill(td_parameter_get(n, "0.weight"), 1);
    assert_int_equal(td_load(n, path_of("model.safetensors"), NULL), 0);
    expect_equal(m, n);
}

static void bad_arguments(void **state)
{
    td_module *m = net();
    td_save_sharded(m, path_of("model.bin"), NULL);
    assert_non_null(strstr(td_error_message(), "expected a name that ends in \".safetensors\""));
    td_error_clear();
    td_save_sharded(m, path_of("model.safetensors"), &(td_save_opts){ .max_shard_bytes = -1 });
    assert_non_null(strstr(td_error_message(), "max_shard_bytes is -1, expected 1 or more"));
    td_error_clear();
    assert_true(td_save_sharded(m, NULL, NULL) < 0);
    td_error_clear();
}

static void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"

static void hostile_indices(void **state)
{
    static const struct { const char *text, *sentence; } bad[] = {
        { "", ": at byte 0: expected '{', got the index's end" },
        { "[]", ": at byte 0: expected '{', got '['" },
        { "{}", ": at byte 0: the index has no \"weight_map\"" },
        { "{\"weight_map\":[]}", ": at byte 14: expected '{', got '['" },
        { "{\"weight_map\":{},\"weight_map\":{}}", ": at byte 17: \"weight_map\" is there twice" },
        { "{\"weight_map\":{}} x", ": at byte 18: expected only spaces after the index's object, got 'x'" },
        { "{\"weight_map\":{\"weight\":7}}", ": at byte 24: the file of a tensor is no text, as it must be" },
        { "{\"weight_map\":{\"weight\":\"../a\"}}", ": at byte 24: \"../a\" is no name of a file beside the index" },
        { "{\"weight_map\":{\"weight\":\"/a\"}}", ": at byte 24: \"/a\" is no name of a file beside the index" },
        { "{\"weight_map\":{\"weight\":\"..\"}}", ": at byte 24: \"..\" is no name of a file beside the index" },
        { "{\"weight_map\":{\"weight\":\"\"}}", ": at byte 24: \"\" is no name of a file beside the index" },
        { "{\"weight_map\":{\"other\":\"b\",\"bias\":\"b\"}}", ": at byte 27: the tensor \"bias\" is not in the file that the index says, \"b\"" },
        { "{\"weight_map\":{\"weight\":\"b\",\"bias\":\"a\"}}",
          ": at byte 15: the tensor \"weight\" is not in the file that the index says, \"b\"" },
        { "{\"weight_map\":{\"weight\":\"a\",\"weight\":\"a\"}}", ": at byte 28: the name \"weight\" is there twice" },
        { "{\"weight_map\":{\"weight\":\"a\",\"bias\":\"b\",\"x\":\"c\"}}", ": at byte 15: the tensor \"weight\" is in two files, \"a\" and another" },
        { "{\"weight_map\":{\"weight\":\"a\",\"x\":\"b2\"}}", ": the files of the index hold 3 tensors, but it names 2" },
    };
    td_module *m = td_nn_linear(1, 1, NULL);
    put_st("a", ONE("weight"), "\0\0\0\0", 4);
    put_st("b", ONE("other"), "\0\0\0\0", 4);
    put_st("b2", "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
           "\0\0\0\0\0\0\0\0", 8);
    put_st("c", "{\"weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
           "\0\0\0\0\0\0\0\0", 8);
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        put_text("i.json", bad[i].text);
        td_load(m, path_of("i.json"), NULL);
        expect_file_error(TD_ERR_FORMAT, "td_load", "i.json", bad[i].sentence);
    }
    put_text("i.json", "{\"weight_map\":{\"weight\":\"none\"}}");
    td_load(m, path_of("i.json"), NULL);
    expect_file_error(TD_ERR_IO, "td_load", "none", ": cannot be opened: No such file or directory");
    put("cut", "\x10\0\0", 3);
    put_text("i.json", "{\"weight_map\":{\"weight\":\"cut\"}}");
    td_load(m, path_of("i.json"), NULL);
    expect_file_error(TD_ERR_FORMAT, "td_load", "cut", ": at byte 0: expected 8 bytes with the header's length, but the file has 3");
    /* every shorter text is refused too */
    static const char whole[] = "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"weight\":\"a\",\"other\":\"b\"}}";
    for (size_t n = 0; n < sizeof whole - 1; n++) {
        put("i.json", whole, n);
        assert_int_equal(td_load(m, path_of("i.json"), NULL), TD_ERR_FORMAT);
        td_error_clear();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(there_and_back), TEST(bad_arguments), TEST(hostile_indices) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
