/* data/idx.c: IDX files, the format of MNIST and its kin (LeCun, Cortes and Burges 1998).
 *
 * A big-endian header (two zero bytes, element type 0x08, number of dimensions, the sizes), then unsigned bytes. Nothing in a file is
 * believed: sizes are multiplied with overflow checks, a plain file's length is compared before anything is allocated, and a
 * compressed one's memory grows only as data really comes, so that a small file cannot ask for terabytes.
 * Held in memory as bytes; read() converts one row (x = byte / 255).
 */
#include "data_impl.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char who[] = "td_dataset_idx";
enum { FIRST_ROOM = 1 << 20 };

typedef struct { uint32_t dim[3]; int64_t count; size_t pixels; unsigned char *data; } idx_file;
typedef struct { idx_file images, labels; float scaled[256]; } idx_set;

static uint32_t big_endian(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* The header of `ndim` dimensions of bytes; its product goes to *total. */
static int read_header(td__bytes *b, int ndim, idx_file *file, size_t *total)
{
    unsigned char head[4 + 4 * 3];
    int64_t want = 4 + 4 * ndim, got = td__bytes_read(b, head, (size_t)want);
    if (got < 0)
        return (int)got;
    const char *path = td__bytes_path(b), *unit = td__bytes_unit(b);
    uint32_t magic = 0x0800u | (uint32_t)ndim;
    if (got >= 4 && big_endian(head) != magic)
        return td__fail(TD_ERR_FORMAT,
                        "%s: %s: at %s 0: expected the magic number 0x%08x (unsigned bytes, %d dimension%s), got 0x%08x", who, path,
                        unit, magic, ndim, ndim > 1 ? "s" : "", big_endian(head));
    if (got < want)
        return td__fail(TD_ERR_FORMAT, "%s: %s: at %s %lld: the file ends inside the header, expected %lld bytes of it", who, path, unit,
                        (long long)got, (long long)want);
    file->pixels = 1;
    for (int i = 0; i < ndim; i++) {
        file->dim[i] = big_endian(head + 4 + 4 * i);
        if (i > 0 && file->dim[i] == 0)
            return td__fail(TD_ERR_FORMAT, "%s: %s: at %s %d: dimension %d is 0, expected 1 or more", who, path, unit, 4 + 4 * i, i);
        file->pixels *= i > 0 ? file->dim[i] : 1;   /* two of 32 bits: fits */
    }
    file->count = file->dim[0];
    if (__builtin_mul_overflow(file->pixels, (size_t)file->count, total) || *total > (size_t)INT64_MAX / 8)
        return td__fail(TD_ERR_FORMAT, "%s: %s: at %s 4: the header's dimensions %u x %u x %u are more than any file holds", who,
                        path, unit, file->dim[0], file->dim[1], file->dim[2]);
    int64_t have = td__bytes_total(b);
    if (have >= 0 && have != want + (int64_t)*total)
        return td__fail(TD_ERR_FORMAT,
                        "%s: %s: at byte %lld: the header promises %zu bytes after it, so %lld in all, but the file has %lld", who,
                        path, (long long)(have < want + (int64_t)*total ? have : want + (int64_t)*total), *total,
                        (long long)(want + (int64_t)*total), (long long)have);
    return 0;
}

static int read_contents(td__bytes *b, int ndim, idx_file *file, size_t total)
{
    const char *path = td__bytes_path(b), *unit = td__bytes_unit(b);
    long long start = 4 + 4 * ndim;
    bool known = td__bytes_total(b) >= 0;
    size_t room = known || total < FIRST_ROOM ? total : FIRST_ROOM, have = 0;
    file->data = td__alloc(room);
    if (!file->data)
        return TD_ERR_MEMORY;
    for (;;) {
        int64_t got = td__bytes_read(b, file->data + have, room - have);
        if (got < 0)
            return (int)got;
        have += (size_t)got;
        if (have < room)
            return td__fail(TD_ERR_FORMAT,
                            "%s: %s: at %s %lld: the contents end, but the header promises %zu bytes after it, so %lld in all", who,
                            path, unit, start + (long long)have, total, start + (long long)total);
        if (have == total)
            break;
        size_t more = room > total / 2 ? total : 2 * room;
        unsigned char *grown = td__grow(file->data, room, more);
        if (!grown)
            return TD_ERR_MEMORY;
        file->data = grown;
        room = more;
    }
    unsigned char beyond;
    int64_t got = td__bytes_read(b, &beyond, 1);
    if (got > 0)
        return td__fail(TD_ERR_FORMAT,
                        "%s: %s: at %s %lld: expected the end, as the header promises %zu bytes after it, but more follows", who,
                        path, unit, start + (long long)total, total);
    return got < 0 ? (int)got : 0;
}

/* PREFIX + name, or that with ".gz" where there is no plain one. The path that was read is left in `path`. */
static int load(const char *prefix, const char *name, int ndim, idx_file *file, char *path, size_t path_size)
{
    if ((size_t)snprintf(path, path_size, "%s%s.gz", prefix, name) >= path_size)
        return td__fail(TD_ERR_ARGUMENT, "%s: the path prefix has %zu characters, at most %zu are possible", who, strlen(prefix),
                        path_size - 32);
    char *suffix = path + strlen(path) - 3;
    *suffix = '\0';
    if (access(path, F_OK) != 0) {
        *suffix = '.';
        if (access(path, F_OK) != 0) {
            *suffix = '\0';
            return td__fail(TD_ERR_IO, "%s: neither %s nor %s.gz exists", who, path, path);
        }
    }
    td__bytes *b = td__bytes_open(who, path);
    if (!b)
        return TD_ERR_IO;
    size_t total = 0;
    int rc = read_header(b, ndim, file, &total);
    if (rc == 0)
        rc = read_contents(b, ndim, file, total);
    td__bytes_close(b);
    return rc;
}

static void idx_close(void *user)
{
    idx_set *set = user;
    td__free(set->images.data);
    td__free(set->labels.data);
    td__free(set);
}

static int idx_read(void *user, int64_t row, void *const *into)
{
    const idx_set *set = user;
    size_t pixels = set->images.pixels;
    const unsigned char *from = set->images.data + (size_t)row * pixels;
    float *image = into[0];
    for (size_t i = 0; i < pixels; i++)
        image[i] = set->scaled[from[i]];
    *(int64_t *)into[1] = set->labels.data[row];
    return 0;
}

td_dataset *td_dataset_idx(const char *path_prefix)
{
    TD_ENTER();
    if (!path_prefix) {
        td__fail(TD_ERR_ARGUMENT, "%s: the path prefix is NULL, expected one as in \"data/train\"", who);
        return &td__dataset_poison;
    }
    idx_set *set = td__calloc(sizeof *set);
    if (!set)
        return &td__dataset_poison;
    char images[4096], labels[4096];
    if (load(path_prefix, "-images-idx3-ubyte", 3, &set->images, images, sizeof images) != 0 ||
        load(path_prefix, "-labels-idx1-ubyte", 1, &set->labels, labels, sizeof labels) != 0)
        goto failed;
    if (set->images.count != set->labels.count) {
        td__fail(TD_ERR_FORMAT, "%s: %s: at byte 4: expected %lld labels, one for each image in %s, got %lld", who, labels,
                 (long long)set->images.count, images, (long long)set->labels.count);
        goto failed;
    }
    for (int i = 0; i < 256; i++)
        set->scaled[i] = (float)i / 255.0f;
    td_field field[] = {
        { .shape = { 3, { 1, set->images.dim[1], set->images.dim[2] } }, .dtype = TD_F32 },
        { .shape = TD_SCALAR, .dtype = TD_I64 },
    };
    td_dataset *data = td_dataset_new(&(td_dataset_source){ .rows = set->images.count, .field = field, .n_fields = 2, .read = idx_read,
                                                            .close = idx_close }, set);
    if (data != &td__dataset_poison)
        return data;
failed:
    idx_close(set);
    return &td__dataset_poison;
}
