/* io/npz_write.c: td_npz_save: several arrays in one zip file, as numpy.savez and numpy.savez_compressed write them.
 *
 * libzip asks for each member's bytes in pieces: first the npy header, then the elements where they lie, so that nothing is held twice. It writes the
 * temporary file of atomic.c, which then puts that in place.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>
#include "io_impl.h"

static const char who[] = "td_npz_save";

/* One member while it is written. data: the tensor's own elements, or `copy`. */
typedef struct {
    td__npy_head head;
    const char *data;
    void *copy;
    size_t bytes, at;
} piece;

static size_t give(piece *p, char *into, size_t n)
{
    size_t done = 0;
    if (p->at < p->head.n) {
        done = p->head.n - p->at < n ? p->head.n - p->at : n;
        memcpy(into, p->head.text + p->at, done);
        p->at += done;
    }
    size_t from = p->at - p->head.n, left = p->at < p->head.n ? 0 : p->bytes - from, more = n - done < left ? n - done : left;
    if (more > 0)
        memcpy(into + done, p->data + from, more);
    p->at += more;
    return done + more;
}

static zip_int64_t source(void *user, void *data, zip_uint64_t n, zip_source_cmd_t command)
{
    piece *p = user;
    switch (command) {
    case ZIP_SOURCE_SUPPORTS:
        return zip_source_make_command_bitmap(ZIP_SOURCE_OPEN, ZIP_SOURCE_READ, ZIP_SOURCE_CLOSE, ZIP_SOURCE_STAT, ZIP_SOURCE_ERROR,
                                              ZIP_SOURCE_FREE, -1);
    case ZIP_SOURCE_OPEN:
        p->at = 0;
        return 0;
    case ZIP_SOURCE_READ:
        return (zip_int64_t)give(p, data, (size_t)n);
    case ZIP_SOURCE_STAT: {
        zip_stat_t *s = data;
        zip_stat_init(s);
        s->size = p->head.n + p->bytes;
        s->valid = ZIP_STAT_SIZE;
        return sizeof *s;
    }
    case ZIP_SOURCE_ERROR:
        memset(data, 0, 2 * sizeof(int));
        return 2 * sizeof(int);
    default:
        return 0;
    }
}

static int prepare(piece *p, const td_tensor *x)
{
    int rc = td__npy_text(who, x, &p->head);
    if (rc != 0)
        return rc;
    td_tensor *order = &p->head.order;
    const td_device_ops *ops = x->storage->ops;
    p->bytes = (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype);
    if (p->bytes == 0 || (ops->host_memory && td_is_contiguous(order))) {
        p->data = td__ptr(order);
        return ops->synchronize(x->storage->device.index);
    }
    p->data = p->copy = td__alloc(p->bytes);
    return p->copy ? td_copy_out(order, p->copy, p->bytes) : TD_ERR_MEMORY;
}

static int complain(zip_t *zip, const char *path, const char *what)
{
    return td__fail(TD_ERR_IO, "%s: %s: %s: %s", who, path, what, zip_strerror(zip));
}

static int add(zip_t *zip, const char *path, const char *name, piece *p, bool compressed)
{
    char member[4200];
    if (snprintf(member, sizeof member, "%s.npy", name) >= (int)sizeof member)
        return td__fail(TD_ERR_ARGUMENT, "%s: the name \"%.80s…\" has more than 4,196 bytes", who, name);
    zip_source_t *from = zip_source_function(zip, source, p);
    zip_int64_t place = from ? zip_file_add(zip, member, from, ZIP_FL_ENC_UTF_8) : -1;
    if (place < 0) {
        zip_source_free(from);
        if (zip_error_code_zip(zip_get_error(zip)) == ZIP_ER_EXISTS)
            return td__fail(TD_ERR_ARGUMENT, "%s: the name \"%.80s\" is there twice", who, name);
        return td__fail(TD_ERR_ARGUMENT, "%s: the name \"%.80s\" cannot be written: %s", who, name, zip_strerror(zip));
    }
    /* the same bytes at any time of day: NumPy's date is 1980-01-01 too */
    if (zip_set_file_compression(zip, (zip_uint64_t)place, compressed ? ZIP_CM_DEFLATE : ZIP_CM_STORE, 0) != 0 ||
        zip_file_set_dostime(zip, (zip_uint64_t)place, 0, 0x21, 0) != 0)
        return complain(zip, path, "cannot be written");
    return 0;
}

/* libzip puts a new file in the temporary one's place: that is the one to publish. */
static int write_zip(td__atomic_file *f, piece *pieces, const td_named *tensors, size_t n, bool compressed)
{
    int code = 0;
    zip_t *zip = zip_open(f->temporary, ZIP_CREATE | ZIP_TRUNCATE, &code);
    if (!zip) {
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        td__fail(TD_ERR_IO, "%s: %s: cannot be written: %s", who, f->path, zip_error_strerror(&error));
        zip_error_fini(&error);
        return TD_ERR_IO;
    }
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = add(zip, f->path, tensors[i].name, &pieces[i], compressed);
    if (rc == 0 && zip_close(zip) != 0)
        rc = complain(zip, f->path, "writing failed");
    else if (rc == 0)
        zip = NULL;
    if (zip)
        zip_discard(zip);
    if (rc != 0)
        return rc;
    close(f->fd);
    f->fd = open(f->temporary, O_WRONLY | O_CLOEXEC);
    return f->fd >= 0 ? 0 : td__fail(TD_ERR_IO, "%s: %s: the written file is gone", who, f->path);
}

/* numpy.savez() of nothing is an empty zip file; libzip would write none. */
static const unsigned char empty[22] = { 'P', 'K', 5, 6 };

int td_npz_save(const char *path, const td_named *tensors, size_t n, const td_npz_save_opts *opts)
{
    TD_ENTER();
    int rc = td__pending();
    if (rc == 0 && n && !tensors)
        rc = td__fail(TD_ERR_ARGUMENT, "%s: the list of tensors is NULL", who);
    if (rc == 0 && n > 65535)
        rc = td__fail(TD_ERR_ARGUMENT, "%s: %zu arrays, at most 65535 are possible", who, n);
    piece *pieces = rc == 0 ? td__calloc((n + 1) * sizeof *pieces) : NULL;
    if (!pieces)
        return rc ? rc : TD_ERR_MEMORY;
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = td__tensor_check(who, tensors[i].tensor);
        if (rc == 0 && (!tensors[i].name || !*tensors[i].name))
            rc = td__fail(TD_ERR_ARGUMENT, "%s: array %zu has no name", who, i);
        if (rc == 0)
            rc = prepare(&pieces[i], tensors[i].tensor);
    }
    if (rc == 0) {
        td__atomic_file f;
        rc = td__atomic_open(&f, who, path);
        if (rc == 0 && n == 0)
            td__atomic_write(&f, empty, sizeof empty);
        else if (rc == 0)
            f.rc = write_zip(&f, pieces, tensors, n, opts && opts->compressed);
        rc = td__atomic_close(&f);
    }
    for (size_t i = 0; i < n; i++)
        td__free(pieces[i].copy);
    td__free(pieces);
    return rc;
}
