/* tests/io/io_test.h: what the tests of io/ share: a folder of their own, files written byte by byte, nothing left behind. */
#ifndef IO_TEST_H
#define IO_TEST_H
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <io_impl.h>
#include <nothing_left.h>
#include <sentence.h>

static char io_folder[64];

static inline char *path_of(const char *name)
{
    static char path[4][160];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", io_folder, name);
    return p;
}

static inline void put(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(path_of(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline size_t get(const char *name, void *into, size_t room)
{
    FILE *f = fopen(path_of(name), "rb");
    assert_non_null(f);
    size_t n = fread(into, 1, room, f);
    fclose(f);
    return n;
}

/* A safetensors file: the length of `header`, the header, `n` bytes of data. */
static inline void put_st(const char *name, const char *header, const void *data, size_t n)
{
    size_t length = strlen(header);
    unsigned char *bytes = malloc(8 + length + n);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, header, length);
    if (n)
        memcpy(bytes + 8 + length, data, n);
    put(name, bytes, 8 + length + n);
    free(bytes);
}

/* "td_x: FOLDER/NAME: " + rest, as the pending error */
static inline void expect_file_error(int code, const char *who, const char *name, const char *rest)
{
    char sentence[1024];
    snprintf(sentence, sizeof sentence, "%s: %s/%s%s", who, io_folder, name, rest);
    expect_error(code, sentence);
}

static inline int begin_test(void **state)
{
    strcpy(io_folder, "/tmp/tandem-io-XXXXXX");
    assert_non_null(mkdtemp(io_folder));
    td_errors(TD_ERRORS_RETURN);
    td_error_clear();
    td_seed(0);
    return 0;
}

static inline int nothing_left(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", io_folder);
    assert_int_equal(system(command), 0);
    td__nn_free_all();
    td__io_free_all();
    expect_nothing_left();
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin_test, nothing_left)
#endif
