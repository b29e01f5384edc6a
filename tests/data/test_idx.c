/* tests/data/test_idx.c: IDX files, good, compressed, and broken in every way we know. Each broken one has its sentence here. */
#include "data_test.h"
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { ROWS = 5, H = 3, W = 4 };
static char folder[64];

static char *path_of(const char *name)
{
    static char path[4][160];
    static int turn;
    char *p = path[turn++ % 4];
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

static void put_gz(const char *name, const void *bytes, size_t n)
{
    gzFile f = gzopen(path_of(name), "wb");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, bytes, (unsigned)n), (int)n);
    assert_int_equal(gzclose(f), Z_OK);
}

static size_t get(const char *name, unsigned char *into, size_t room)
{
    FILE *f = fopen(path_of(name), "rb");
    assert_non_null(f);
    size_t n = fread(into, 1, room, f);
    fclose(f);
    return n;
}

static size_t header(unsigned char *at, uint32_t magic, int ndim, const uint32_t *dim)
{
    uint32_t words[4] = { magic };
    for (int i = 0; i < ndim; i++)
        words[i + 1] = dim[i];
    for (int i = 0; i <= ndim; i++)
        for (int b = 0; b < 4; b++)
            at[4 * i + b] = (unsigned char)(words[i] >> (24 - 8 * b));
    return 4 * ((size_t)ndim + 1);
}

static unsigned char pixel(int i)
{
    return (unsigned char)(i * 37 + 11);
}

static size_t images(unsigned char *at)
{
    size_t n = header(at, 0x803, 3, (uint32_t[]){ ROWS, H, W });
    for (int i = 0; i < ROWS * H * W; i++)
        at[n++] = pixel(i);
    return n;
}

static size_t labels(unsigned char *at)
{
    size_t n = header(at, 0x801, 1, (uint32_t[]){ ROWS });
    for (int i = 0; i < ROWS; i++)
        at[n++] = (unsigned char)(250 + i);    /* any byte is a label */
    return n;
}

static int make_folder(void **state)
{
    strcpy(folder, "/tmp/tandem-idx-XXXXXX");
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

static void check_good(void)
{
    td_dataset *d = td_dataset_idx(path_of("d"));
    assert_int_equal(td_error_pending(), 0);
    assert_int_equal(td_dataset_rows(d), ROWS);
    td_loader *l = td_loader_new(d, &(td_loader_opts){ .batch = ROWS, .parts = 1 });
    td_batch b;
    assert_true(td_loader_next(l, &b));
    assert_int_equal(td_dtype_of(b.x), TD_F32);
    assert_int_equal(td_dtype_of(b.y), TD_I64);
    td_shape s = td_shape_of(b.x);
    assert_true(td__shape_equal(s, TD_SHAPE(ROWS, 1, H, W)));
    assert_true(td__shape_equal(td_shape_of(b.y), TD_SHAPE(ROWS)));
    const float *x = td_data(b.x);
    for (int i = 0; i < ROWS * H * W; i++)
        assert_true(x[i] == (float)(pixel(i) / 255.0));
    for (int i = 0; i < ROWS; i++)
        assert_int_equal(((const int64_t *)td_data(b.y))[i], 250 + i);
    td_loader_free(l);
}

static void good_files(void **state)
{
    unsigned char bytes[512];
    size_t ni = images(bytes);
    put("d-images-idx3-ubyte", bytes, ni);
    size_t nl = labels(bytes);
    put_gz("d-labels-idx1-ubyte.gz", bytes, nl);
    check_good();                              /* plain and gzip mixed */
    put("d-labels-idx1-ubyte", bytes, nl);
    check_good();                              /* both there: the plain one */
    unlink(path_of("d-images-idx3-ubyte"));
    ni = images(bytes);
    put_gz("d-images-idx3-ubyte.gz", bytes, ni);
    check_good();
    /* two gzip members are one file */
    unsigned char joined[1024];
    put_gz("a", bytes, 20);
    put_gz("b", bytes + 20, ni - 20);
    size_t n = get("a", joined, sizeof joined);
    n += get("b", joined + n, sizeof joined - n);
    put("d-images-idx3-ubyte.gz", joined, n);
    check_good();
    /* no rows at all */
    n = header(bytes, 0x803, 3, (uint32_t[]){ 0, 28, 28 });
    put_gz("e-images-idx3-ubyte.gz", bytes, n);
    n = header(bytes, 0x801, 1, (uint32_t[]){ 0 });
    put("e-labels-idx1-ubyte", bytes, n);
    td_dataset *d = td_dataset_idx(path_of("e"));
    assert_int_equal(td_error_pending(), 0);
    assert_int_equal(td_dataset_rows(d), 0);
    td_dataset_free(d);
}

/* `sentence` has one %s for the folder. */
static void expect_broken(int code, const char *sentence)
{
    char full[1024];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(full, sizeof full, sentence, folder, folder);
#pragma GCC diagnostic pop
    td_dataset *d = td_dataset_idx(path_of("d"));
    assert_ptr_equal(d, &td__dataset_poison);
    expect_error(code, full);
    assert_int_equal(td_dataset_rows(d), 0);
    td_dataset_free(d);
}

static void broken_plain_files(void **state)
{
    unsigned char good[512], bytes[512];
    size_t n = images(good);
    expect_broken(TD_ERR_IO, "td_dataset_idx: neither %s/d-images-idx3-ubyte nor %s/d-images-idx3-ubyte.gz exists");
    put("d-images-idx3-ubyte", good, 0);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 0: the file ends inside the header, expected 16 bytes of it");
    put("d-images-idx3-ubyte", good, 10);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 10: the file ends inside the header, expected 16 bytes of it");
    put("d-images-idx3-ubyte", "\x89PNG\r\n\x1a\n and so on", 18);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 0: expected the magic number 0x00000803 (unsigned bytes, 3 "
                                 "dimensions), got 0x89504e47");
    put("d-images-idx3-ubyte", good, n - 1);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 75: the header promises 60 bytes after it, so 76 in all, but the "
                                 "file has 75");
    memcpy(bytes, good, n);
    bytes[n] = 0;
    put("d-images-idx3-ubyte", bytes, n + 1);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 76: the header promises 60 bytes after it, so 76 in all, but the "
                                 "file has 77");
    header(bytes, 0x803, 3, (uint32_t[]){ 0xffffffff, 0xffffffff, 0xffffffff });
    put("d-images-idx3-ubyte", bytes, n);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 4: the header's dimensions 4294967295 x 4294967295 x 4294967295 are "
                                 "more than any file holds");
    header(bytes, 0x803, 3, (uint32_t[]){ 60000, 65536, 65536 });
    put("d-images-idx3-ubyte", bytes, n);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 76: the header promises 257698037760000 bytes after it, so "
                                 "257698037760016 in all, but the file has 76");
    header(bytes, 0x803, 3, (uint32_t[]){ ROWS, 0, W });
    put("d-images-idx3-ubyte", bytes, 16);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte: at byte 8: dimension 1 is 0, expected 1 or more");
    unlink(path_of("d-images-idx3-ubyte"));
    assert_int_equal(mkdir(path_of("d-images-idx3-ubyte"), 0700), 0);
    expect_broken(TD_ERR_IO, "td_dataset_idx: %s/d-images-idx3-ubyte: is a folder, expected a file");
    rmdir(path_of("d-images-idx3-ubyte"));
    put("d-images-idx3-ubyte", good, n);
    expect_broken(TD_ERR_IO, "td_dataset_idx: neither %s/d-labels-idx1-ubyte nor %s/d-labels-idx1-ubyte.gz exists");
    put("d-labels-idx1-ubyte", good, n);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-labels-idx1-ubyte: at byte 0: expected the magic number 0x00000801 (unsigned bytes, 1 "
                                 "dimension), got 0x00000803");
    header(bytes, 0x801, 1, (uint32_t[]){ ROWS - 1 });
    put("d-labels-idx1-ubyte", bytes, 8 + ROWS - 1);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-labels-idx1-ubyte: at byte 4: expected 5 labels, one for each image in %s/d-images-idx3-ubyte, "
                                 "got 4");
}

static void broken_gzip_files(void **state)
{
    unsigned char good[512], packed[512], bytes[512];
    const char *name = "d-images-idx3-ubyte.gz";
    size_t n = images(good);
    put_gz(name, good, n);
    size_t np = get(name, packed, sizeof packed);
    put(name, packed, 0);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte.gz: at byte 0: the file is empty, expected gzip's bytes 1f 8b");
    put(name, good, n);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte.gz: at byte 0: expected gzip's bytes 1f 8b, got byte 00");
    char sentence[256];
    put(name, packed, np - 20);
    snprintf(sentence, sizeof sentence, "td_dataset_idx: %%s/d-images-idx3-ubyte.gz: at byte %zu: the file ends inside the gzip stream", np - 20);
    expect_broken(TD_ERR_FORMAT, sentence);
    memcpy(bytes, packed, np);
    bytes[np - 8] ^= 1;                        /* the checksum */
    put(name, bytes, np);
    snprintf(sentence, sizeof sentence, "td_dataset_idx: %%s/d-images-idx3-ubyte.gz: at byte %zu: the gzip stream is damaged: incorrect data check",
             np - 4);
    expect_broken(TD_ERR_FORMAT, sentence);
    memcpy(bytes, packed, np);
    memcpy(bytes + np, "junk", 4);
    put(name, bytes, np + 4);
    snprintf(sentence, sizeof sentence,
             "td_dataset_idx: %%s/d-images-idx3-ubyte.gz: at byte %zu: expected the end of the file after the gzip stream, got byte 6a", np);
    expect_broken(TD_ERR_FORMAT, sentence);
    put_gz(name, good, n - 7);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte.gz: at decompressed byte 69: the contents end, but the header promises 60 "
                                 "bytes after it, so 76 in all");
    memcpy(bytes, good, n);
    bytes[n] = 9;
    put_gz(name, bytes, n + 1);
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte.gz: at decompressed byte 76: expected the end, as the header promises 60 "
                                 "bytes after it, but more follows");
    /* a small file that asks for a terabyte does not get it */
    header(bytes, 0x803, 3, (uint32_t[]){ 1 << 20, 1 << 10, 1 << 10 });
    put_gz(name, bytes, n);
    td_memory_trim();
    td_memory_reset_peak();
    expect_broken(TD_ERR_FORMAT, "td_dataset_idx: %s/d-images-idx3-ubyte.gz: at decompressed byte 76: the contents end, but the header promises "
                                 "1099511627776 bytes after it, so 1099511627792 in all");
    assert_true(td_memory().peak_bytes < 4 << 20);
}

static void large_gzip_grows(void **state)
{
    enum { N = 3000, SIDE = 40 };              /* 4.8 MB: past the first room, several doublings */
    size_t n = 16 + (size_t)N * SIDE * SIDE;
    unsigned char *bytes = malloc(n);
    header(bytes, 0x803, 3, (uint32_t[]){ N, SIDE, SIDE });
    for (size_t i = 16; i < n; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 13);
    put_gz("d-images-idx3-ubyte.gz", bytes, n);
    unsigned char small[8 + N];
    header(small, 0x801, 1, (uint32_t[]){ N });
    memset(small + 8, 7, N);
    put_gz("d-labels-idx1-ubyte.gz", small, sizeof small);
    td_dataset *d = td_dataset_idx(path_of("d"));
    assert_int_equal(td_error_pending(), 0);
    float x[SIDE * SIDE];
    int64_t y;
    for (int64_t row = 0; row < N; row += 997) {
        assert_int_equal(d->read(d->user, row, (void *[]){ x, &y }), 0);
        for (int i = 0; i < SIDE * SIDE; i++)
            assert_true(x[i] == (float)(bytes[16 + row * SIDE * SIDE + i] / 255.0));
        assert_int_equal(y, 7);
    }
    td_dataset_free(d);
    free(bytes);
}

static void bad_arguments(void **state)
{
    td_dataset_idx(NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_idx: the path prefix is NULL, expected one as in \"data/train\"");
    char *longer = calloc(1, 5001);
    memset(longer, 'x', 5000);
    td_dataset_idx(longer);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_idx: the path prefix has 5000 characters, at most 4064 are possible");
    free(longer);
}

/* Debian's dataset-fashion-mnist, when it is there: sizes, classes of 6000 and 1000, and the mean pixel that everybody's normalisation uses. */
static void fashion_mnist(void **state)
{
    const char *prefix = "/usr/share/datasets/fashion-mnist/";
    char path[128];
    snprintf(path, sizeof path, "%strain-images-idx3-ubyte.gz", prefix);
    if (access(path, R_OK) != 0)
        skip();
    for (int train = 0; train < 2; train++) {
        snprintf(path, sizeof path, "%s%s", prefix, train ? "train" : "t10k");
        td_dataset *d = td_dataset_idx(path);
        assert_int_equal(td_error_pending(), 0);
        int64_t rows = train ? 60000 : 10000, count[10] = { 0 };
        assert_int_equal(td_dataset_rows(d), rows);
        double sum = 0;
        float x[784];
        int64_t y;
        for (int64_t row = 0; row < rows; row++) {
            assert_int_equal(d->read(d->user, row, (void *[]){ x, &y }), 0);
            assert_in_range(y, 0, 9);
            count[y]++;
            for (int i = 0; i < 784; i++)
                sum += x[i];
        }
        for (int c = 0; c < 10; c++)
            assert_int_equal(count[c], rows / 10);
        double mean = sum / (784.0 * (double)rows);
        assert_true(mean > 0.285 && mean < 0.288);   /* 0.2860 and 0.2868 */
        td_dataset_free(d);
    }
}

#define IN_FOLDER(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(good_files), IN_FOLDER(broken_plain_files), IN_FOLDER(broken_gzip_files), IN_FOLDER(large_gzip_grows), TEST(bad_arguments),
        TEST(fashion_mnist),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
