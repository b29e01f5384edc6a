/* tests/io/test_npz.c: npz files that NumPy wrote (numpy/: savez, savez_compressed of numpy 2; ZIP64 local headers), there and back, read by Python's
 * zipfile, and files that lie.
 */
#include <sys/stat.h>
#include <unistd.h>
#include "io_test.h"

static void expect_numpy(const char *name)
{
    static const char *const names[] = { "x", "fortran", "big", "flags", "scalar", "empty", "half" };
    char path[512];
    snprintf(path, sizeof path, "%s/%s", NUMPY, name);
    td_npz *f = td_npz_open(path, NULL);
    assert_int_equal(td_npz_count(f), TD_COUNT(names));
    for (size_t i = 0; i < TD_COUNT(names); i++)
        assert_string_equal(td_npz_name(f, i), names[i]);
    assert_true(td_npz_has(f, "x") && !td_npz_has(f, "x.npy") && !td_npz_has(f, ""));
    td_tensor *x = td_npz_get(f, "x"), *y = td_npz_get(f, "fortran"), *z = td_npz_get(f, "big"), *b = td_npz_get(f, "flags"),
              *s = td_npz_get(f, "scalar"), *e = td_npz_get(f, "empty"), *h = td_npz_get(f, "half");
    td_npz_free(f);
    assert_true(td_dtype_of(x) == TD_F32 && td_dtype_of(y) == TD_F64 && td_dtype_of(z) == TD_I32 && td_dtype_of(b) == TD_BOOL &&
                td_dtype_of(s) == TD_F64 && td_dtype_of(e) == TD_I64 && td_dtype_of(h) == TD_F16);
    for (int i = 0; i < 6; i++)
        assert_true(((float *)td_data(x))[i] == (float)i - 2.5f && ((double *)td_data(y))[i] == i);
    assert_true(td_at(z, TD_SHAPE(0)) == 1 && td_at(z, TD_SHAPE(1)) == -2 && td_at(z, TD_SHAPE(2)) == 3);
    assert_true(td_at(b, TD_SHAPE(0)) == 1 && td_at(b, TD_SHAPE(1)) == 0 && td_at(h, TD_SHAPE(0)) == 1.5 && td_at(h, TD_SHAPE(1)) == -2);
    assert_true(td_item(s) == 2.5 && td_shape_of(s).ndim == 0 && td_dim(e, 0) == 0 && td_dim(e, 1) == 4);
}

static void numpys_files(void **state)
{
    expect_numpy("stored.npz");
    expect_numpy("deflated.npz");
}

static int64_t size_of(const char *name)
{
    struct stat about;
    assert_int_equal(stat(path_of(name), &about), 0);
    return about.st_size;
}

static void there_and_back(void **state)
{
    td_tensor *a = td_rand(TD_SHAPE(70, 30), 1, 2), *t = td_transpose(a, 0, 1), *zero = td_zeros(TD_SHAPE(10000), TD_F64),
              *part = td_narrow(a, 1, 3, 4), *one = td_full(TD_SCALAR, TD_I64, 1 << 20);
    td_named all[] = { { "a", a }, { "layer/0", t }, { "zero", zero }, { "part", part }, { "one", one } };
    for (int compressed = 0; compressed < 2; compressed++) {
        assert_int_equal(td_npz_save(path_of("f.npz"), all, TD_COUNT(all), &(td_npz_save_opts){ .compressed = compressed }), 0);
        assert_true(compressed ? size_of("f.npz") < 40000 : size_of("f.npz") > 96000);
        td_npz *f = td_npz_open(path_of("f.npz"), NULL);
        assert_int_equal(td_npz_count(f), TD_COUNT(all));
        for (size_t i = 0; i < TD_COUNT(all); i++) {
            td_tensor *back = td_npz_get(f, all[i].name), *want = td_contiguous(all[i].tensor);
            assert_true(td_numel(back) == td_numel(want) && td_dtype_of(back) == td_dtype_of(want));
            assert_memory_equal(td_data(back), td_data(want), (size_t)td_numel(want) * td_dtype_size(td_dtype_of(want)));
        }
        char command[512];
        snprintf(command, sizeof command, "python3 -c 'import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; "
                 "assert z.namelist() == [\"a.npy\", \"layer/0.npy\", \"zero.npy\", \"part.npy\", \"one.npy\"]; "
                 "assert z.read(\"a.npy\")[:6] == b\"\\x93NUMPY\" and len(z.read(\"zero.npy\")) == 80128' '%s'", path_of("f.npz"));
        assert_int_equal(system(command), 0);
    }
    assert_int_equal(td_npz_save(path_of("none.npz"), NULL, 0, NULL), 0);
    assert_int_equal(td_npz_count(td_npz_open(path_of("none.npz"), NULL)), 0);
    char command[256];
    snprintf(command, sizeof command, "test \"$(ls %s)\" = \"$(printf 'f.npz\\nnone.npz')\"", io_folder);   /* no temporary file is left */
    assert_int_equal(system(command), 0);
}

static void bad_arguments(void **state)
{
    td_tensor *x = td_ones(TD_SHAPE(2), TD_F32), *low = td_ones(TD_SHAPE(2), TD_BF16);
    td_npz_save(path_of("f.npz"), (td_named[]){ { "a", x }, { "a", x } }, 2, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_npz_save: the name \"a\" is there twice");
    td_npz_save(path_of("f.npz"), (td_named[]){ { "a", low } }, 1, NULL);
    expect_error(TD_ERR_DTYPE, "td_npz_save: NumPy has no bf16; td_safetensors_save writes it");
    td_npz_save(path_of("f.npz"), (td_named[]){ { "", x } }, 1, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_npz_save: array 0 has no name");
    assert_int_equal(access(path_of("f.npz"), F_OK), -1);
    assert_int_equal(td_npz_save(path_of("f.npz"), &(td_named){ "a", x }, 1, NULL), 0);
    td_npz *f = td_npz_open(path_of("f.npz"), NULL);
    assert_true(td_is_poisoned(td_npz_get(f, "b")));
    assert_non_null(strstr(td_error_message(), "f.npz has no array \"b\" among its 1"));
    td_error_clear();
    assert_null(td_npz_name(f, 1));
    td_error_clear();
    put("text", "no zip file", 11);
    td_npz_count(td_npz_open(path_of("text"), NULL));
    assert_non_null(strstr(td_error_message(), "text: is no zip file, as an npz file must be"));
    td_error_clear();
}

/* Every byte of a compressed file with a bit turned, and every cut: an error or the very same array, never a crash and never other values. */
static void damaged(void **state)
{
    static unsigned char bytes[4096];
    td_tensor *x = td_full(TD_SHAPE(200), TD_F32, 3);
    assert_int_equal(td_npz_save(path_of("f.npz"), &(td_named){ "x", x }, 1, &(td_npz_save_opts){ .compressed = true }), 0);
    size_t n = get("f.npz", bytes, sizeof bytes);
    int refused = 0;
    for (size_t i = 0; i < 2 * n; i++) {
        unsigned char was = bytes[i % n];
        bytes[i % n] ^= (unsigned char)(i < n ? 1 << i % 8 : 0);
        unlink(path_of("b.npz"));
        put("b.npz", bytes, i < n ? n : i - n);
        bytes[i % n] = was;
        TD_SCOPE();
        td_npz *f = td_npz_open(path_of("b.npz"), NULL);
        td_tensor *y = td_error_pending() == 0 && td_npz_has(f, "x") ? td_npz_get(f, "x") : NULL;
        if (y && !td_is_poisoned(y) && td_numel(y) == 200)
            assert_memory_equal(td_data(y), td_data(x), 800);
        else
            refused++;
        assert_true(td_error_pending() == 0 || td_error_pending() == TD_ERR_FORMAT);
        td_error_clear();
        td_npz_free(f);
    }
    assert_true(refused > (int)n);
}

/* 200 MB of zeros in some hundred kilobytes: refused before memory is taken, unless asked for. */
static void bombs(void **state)
{
    td_tensor *zero = td_zeros(TD_SHAPE(1 << 20), TD_F32);
    assert_int_equal(td_npz_save(path_of("f.npz"), &(td_named){ "x", zero }, 1, &(td_npz_save_opts){ .compressed = true }), 0);
    assert_true(size_of("f.npz") < 10000);
    td_npz *f = td_npz_open(path_of("f.npz"), &(td_npz_opts){ .max_bytes = 1 << 20 });
    assert_true(td_is_poisoned(td_npz_get(f, "x")));
    expect_file_error(TD_ERR_FORMAT, "td_npz_get", "f.npz: x.npy", ": would take 4194432 bytes unpacked, at most 1048576 are allowed (max_bytes)");
    assert_int_equal(td_numel(td_npz_get(td_npz_open(path_of("f.npz"), NULL), "x")), 1 << 20);
    /* the directory says 4 GB, and so does the npy header; the data are 4 MB */
    static unsigned char bytes[16384];
    size_t n = get("f.npz", bytes, sizeof bytes), at = n - 22;
    while (at > 0 && memcmp(bytes + at, "PK\1\2", 4) != 0)
        at--;
    memset(bytes + at + 24, 0xee, 4);
    put("big.npz", bytes, n);
    f = td_npz_open(path_of("big.npz"), NULL);
    assert_true(td_is_poisoned(td_npz_get(f, "x")));
    assert_non_null(strstr(td_error_message(), "big.npz: x.npy: would take 4008636142 bytes unpacked"));
    td_error_clear();
    f = td_npz_open(path_of("big.npz"), &(td_npz_opts){ .max_bytes = INT64_C(1) << 40 });
    int64_t before = td_memory().live_bytes;
    assert_true(td_is_poisoned(td_npz_get(f, "x")) && td_error_pending() == TD_ERR_FORMAT);
    assert_true(td_memory().live_bytes == before);
    td_error_clear();
    /* a ZIP64 record that promises 2^40 members */
    unsigned char record[56 + 20 + 22] = { 'P', 'K', 6, 6, [4] = 44, [37] = 1 };
    memcpy(record + 56, "PK\6\7", 4);
    record[56 + 16] = 1;
    memcpy(record + 76, "PK\5\6\0\0\0\0\xff\xff\xff\xff", 12);
    memset(record + 88, 0xff, 8);
    put("many.npz", record, sizeof record);
    td_npz_free(td_npz_open(path_of("many.npz"), NULL));
    expect_file_error(TD_ERR_FORMAT, "td_npz_open", "many.npz", ": at byte 0: the directory promises 1099511627776 members, at most 65535 are possible");
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(numpys_files), TEST(there_and_back), TEST(bad_arguments), TEST(damaged), TEST(bombs) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
