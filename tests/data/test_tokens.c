/* tests/data/test_tokens.c: windows over bytes and shards, parts of a stream, llm.c's headers, and files that are no such thing. */
#include "data_test.h"
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static const char *path_of(const char *name)
{
    static char path[8][160];
    static int turn;
    char *p = path[turn++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static void put(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(path_of(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static int make_folder(void **state)
{
    strcpy(folder, "/tmp/tandem-tokens-XXXXXX");
    assert_non_null(mkdtemp(folder));
    return begin_test(state);
}

static int remove_folder(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
    return nothing_left(state);
}

/* Every row of the set is the window of `stream` that begins at begin + row*stride. */
static void check_rows(td_dataset *d, const int64_t *stream, int64_t begin, int64_t end, int64_t t, int64_t stride)
{
    assert_int_equal(td_error_pending(), 0);
    int64_t rows = td_dataset_rows(d), x[64], y[64], at = begin;
    for (int64_t row = 0; row < rows; row++, at += stride) {
        assert_int_equal(d->read(d->user, row, (void *[]){ x, y }), 0);
        for (int64_t i = 0; i < t; i++) {
            assert_int_equal(x[i], stream[at + i]);
            assert_int_equal(y[i], stream[at + i + 1]);
        }
    }
    assert_true(rows > 0 && at + t + 1 > end);                     /* one more would not fit … */
    assert_true(at - stride + t + 1 <= end);                       /* … and the last does       */
    td_dataset_free(d);
}

static void bytes_of_a_text(void **state)
{
    unsigned char text[103];
    int64_t stream[103];
    for (int i = 0; i < 103; i++)
        stream[i] = text[i] = (unsigned char)(i * 7 + 200);
    put("text", text, sizeof text);
    const char *path = path_of("text");
    check_rows(td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 10 }), stream, 0, 103, 10, 10);
    check_rows(td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 10, .stride = 3 }), stream, 0, 103, 10, 3);
    check_rows(td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 1, .stride = 20 }), stream, 0, 103, 1, 20);
    /* two parts share no token: floor(0.75 * 103) = 77 */
    check_rows(td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 4, .to = 0.75 }), stream, 0, 77, 4, 4);
    check_rows(td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 4, .from = 0.75 }), stream, 77, 103, 4, 4);
    /* one row is the least */
    td_dataset *d = td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 102 });
    assert_int_equal(td_dataset_rows(d), 1);
    td_dataset_free(d);

    td_loader *l = td_loader_new(td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 10 }), &(td_loader_opts){ .batch = 3, .parts = 1 });
    td_batch b;
    assert_true(td_loader_next(l, &b));
    assert_true(td__shape_equal(td_shape_of(b.x), TD_SHAPE(3, 10)) && td__shape_equal(td_shape_of(b.y), TD_SHAPE(3, 10)));
    assert_true(td_dtype_of(b.x) == TD_I64 && td_dtype_of(b.y) == TD_I64);
    assert_int_equal(td_at(b.y, TD_SHAPE(2, 9)), stream[30]);
    td_loader_free(l);
}

static void put_u16(const char *name, const int64_t *ids, int n, bool header)
{
    unsigned char bytes[1024 + 2 * 64] = { 0 };
    size_t at = header ? 1024 : 0;
    if (header)
        memcpy(bytes, (uint32_t[]){ 20240520, 1, (uint32_t)n }, 12);
    for (int i = 0; i < n; i++) {
        bytes[at++] = (unsigned char)(ids[i] & 255);
        bytes[at++] = (unsigned char)(ids[i] >> 8);
    }
    put(name, bytes, at);
}

static void put_u32(const char *name, const int64_t *ids, int n, bool header)
{
    unsigned char bytes[1024 + 4 * 64] = { 0 };
    size_t at = header ? 1024 : 0;
    if (header)
        memcpy(bytes, (uint32_t[]){ 20240801, 7, (uint32_t)n }, 12);
    for (int i = 0; i < n; i++)
        for (int b = 0; b < 4; b++)
            bytes[at++] = (unsigned char)(ids[i] >> 8 * b);
    put(name, bytes, at);
}

/* Four shards of 20, 0, 7 and 33 ids, plain and with a header: one stream, windows of 8 that cross. */
static void shards(void **state)
{
    int64_t stream[60];
    for (int i = 0; i < 60; i++)
        stream[i] = (i * 997 + 300) % 65536;
    put_u16("a_0.bin", stream, 20, true);
    put_u16("a_1.bin", stream, 0, true);
    put_u16("a_2.bin", stream + 20, 7, false);
    put_u16("a_3.bin", stream + 27, 33, true);
    const char *pattern = path_of("a_?.bin"), *each[] = { path_of("a_0.bin"), path_of("a_2.bin"), path_of("a_3.bin") };
    const td_tokens_opts opts = { .context = 8, .stride = 5 };
    check_rows(td_dataset_tokens(&pattern, 1, &opts), stream, 0, 60, 8, 5);
    check_rows(td_dataset_tokens(each, 3, &opts), stream, 0, 60, 8, 5);
    check_rows(td_dataset_tokens(&pattern, 1, &(td_tokens_opts){ .context = 8, .from = 0.5 }), stream, 30, 60, 8, 8);

    for (int i = 0; i < 60; i++)
        stream[i] = (int64_t)i * 70000 + 5;
    put_u32("b_0.bin", stream, 31, true);
    put_u32("b_1.bin", stream + 31, 29, false);
    const char *first[] = { path_of("b_0.bin"), path_of("b_1.bin") };
    check_rows(td_dataset_tokens(first, 1, &opts), stream, 0, 31, 8, 5);            /* its header says u32 */
    check_rows(td_dataset_tokens(first, 2, &(td_tokens_opts){ .context = 8, .stride = 5, .kind = TD_TOKENS_U32 }), stream, 0, 60, 8, 5);
    /* bytes when asked for, whatever the name */
    td_dataset *d = td_dataset_tokens(&first[1], 1, &(td_tokens_opts){ .context = 115, .kind = TD_TOKENS_BYTES });
    assert_int_equal(td_dataset_rows(d), 1);
    td_dataset_free(d);
    /* a file whose name looks like a pattern */
    put("odd[1]", "0123456789", 10);
    const char *odd = path_of("odd[1]");
    d = td_dataset_tokens(&odd, 1, &(td_tokens_opts){ .context = 3 });
    assert_int_equal(td_dataset_rows(d), 3);
    td_dataset_free(d);
}

static void expect_broken(const char *name, td_tokens_opts opts, int code, const char *sentence)
{
    const char *path = path_of(name);
    char full[512];
    td_dataset *d = td_dataset_tokens(&path, 1, &opts);
    assert_ptr_equal(d, &td__dataset_poison);
    snprintf(full, sizeof full, "td_dataset_tokens: %s%s", sentence[0] == ':' ? path : "", sentence);
    expect_error(code, full);
}

static void broken_files(void **state)
{
    unsigned char bytes[1100] = { 0 };
    const td_tokens_opts four = { .context = 4 };
    expect_broken("none.bin", four, TD_ERR_IO, ": cannot be opened: No such file or directory");
    expect_broken("none*.bin", four, TD_ERR_IO, ": no file has a name like that");
    assert_int_equal(mkdir(path_of("d.bin"), 0700), 0);
    expect_broken("d.bin", four, TD_ERR_IO, ": is a folder, expected a file");
    assert_int_equal(mkfifo(path_of("p.bin"), 0600), 0);
    expect_broken("p.bin", four, TD_ERR_IO, ": is no regular file, expected a file");
    put("e.bin", bytes, 0);
    expect_broken("e.bin", four, TD_ERR_FORMAT, ": the file is empty, expected tokens");
    put("odd.bin", bytes, 11);
    expect_broken("odd.bin", four, TD_ERR_FORMAT, ": its 11 bytes are no whole number of 2-byte ids");
    put("odd4.bin", bytes, 18);
    expect_broken("odd4.bin", (td_tokens_opts){ .context = 4, .kind = TD_TOKENS_U32 }, TD_ERR_FORMAT,
                  ": its 18 bytes are no whole number of 4-byte ids");
    memcpy(bytes, (uint32_t[]){ 20240520, 1, 40 }, 12);
    put("h.bin", bytes, 1100);
    expect_broken("h.bin", four, TD_ERR_FORMAT,
                  ": at byte 8: the header promises 40 ids of 2 bytes after its 1024 bytes, so 1104 in all, but the file has 1100");
    memcpy(bytes, (uint32_t[]){ 20240801, 7, 0xffffffff }, 12);
    put("h.bin", bytes, 1100);
    expect_broken("h.bin", four, TD_ERR_FORMAT, ": at byte 8: the header promises 4294967295 ids of 4 bytes after its 1024 bytes, so 17179870204 in "
                                                "all, but the file has 1100");
    put("h.bin", bytes, 12);                   /* ends inside the header */
    expect_broken("h.bin", four, TD_ERR_FORMAT, ": at byte 8: the header promises 4294967295 ids of 4 bytes after its 1024 bytes, so 17179870204 in "
                                                "all, but the file has 12");
    memcpy(bytes, (uint32_t[]){ 20240520, 1, 38 }, 12);
    put("h.bin", bytes, 1100);
    expect_broken("h.bin", (td_tokens_opts){ .context = 4, .kind = TD_TOKENS_U32 }, TD_ERR_FORMAT,
                  ": at byte 0: the header says ids of 2 bytes, but kind asks for 4");
    put("s.bin", bytes, 8);
    expect_broken("s.bin", four, TD_ERR_ARGUMENT, ": tokens 0 to 4 are 4, but one row of context 4 needs 5");
    expect_broken("s.bin", (td_tokens_opts){ .context = 2, .from = 0.6 }, TD_ERR_ARGUMENT, ": tokens 2 to 4 are 2, but one row of context 2 needs 3");
}

static void unknown_ids(void **state)
{
    int64_t stream[20];
    for (int i = 0; i < 20; i++)
        stream[i] = i;
    stream[13] = 50257;
    put_u16("v.bin", stream, 20, false);
    const char *path = path_of("v.bin");
    td_loader *l = td_loader_new(td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = 6, .vocab = 50257 }),
                                 &(td_loader_opts){ .batch = 1, .parts = 1 });
    td_batch b;
    assert_true(td_loader_next(l, &b));
    assert_true(td_loader_next(l, &b));
    assert_false(td_loader_next(l, &b));
    char full[512];
    snprintf(full, sizeof full, "td_loader_next: row 2 of the data set could not be read: td_dataset_tokens: %s: token 13 is 50257, expected 0 to 50256",
             path);
    expect_error(TD_ERR_FORMAT, full);
    td_loader_free(l);
}

static void bad_arguments(void **state)
{
    const char *path = "x", *none = NULL, *empty = "";
    td_dataset_tokens(NULL, 1, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: no path is given, expected one or more");
    td_dataset_tokens(&path, 0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: no path is given, expected one or more");
    td_dataset_tokens(&none, 1, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: path 0 is NULL, expected a file or a pattern");
    td_dataset_tokens(&empty, 1, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: path 0 is empty, expected a file or a pattern");
    td_dataset_tokens(&path, 1, &(td_tokens_opts){ .context = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: context is -1, expected 1 or more (0 means 1024)");
    td_dataset_tokens(&path, 1, &(td_tokens_opts){ .stride = -2 });
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: stride is -2, expected 1 or more (0 means context)");
    td_dataset_tokens(&path, 1, &(td_tokens_opts){ .vocab = -3 });
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: vocab is -3, expected 1 or more (0: ids are not compared)");
    td_dataset_tokens(&path, 1, &(td_tokens_opts){ .from = 0.5, .to = 0.5 });
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: the part from 0.5 to 0.5 is none, expected 0 <= from < to <= 1");
    td_dataset_tokens(&path, 1, &(td_tokens_opts){ .to = 1.5 });
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: the part from 0 to 1.5 is none, expected 0 <= from < to <= 1");
    td_dataset_tokens(&path, 1, &(td_tokens_opts){ .kind = 9 });
    expect_error(TD_ERR_ARGUMENT, "td_dataset_tokens: kind is 9, expected TD_TOKENS_AUTO, _BYTES, _U16 or _U32");
}

#define IN_FOLDER(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(bytes_of_a_text), IN_FOLDER(shards), IN_FOLDER(broken_files), IN_FOLDER(unknown_ids), TEST(bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
