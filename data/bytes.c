/* data/bytes.c: one file as a stream of bytes, plain or gzip.
 *
 * What a gzip file holds is known only by reading it, so nothing is allocated for contents here, and the decompressor's own errors
 * name the place in the compressed file. Members that follow one another are one stream (as gzip -d reads them); anything else
 * after the last member is an error, where zlib's gzread would pass over it in silence.
 */
#include "data_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { CHUNK = 64 * 1024 };

struct td__bytes {
    const char *who;
    char   *path;
    int     fd;
    bool    gzip;
    int64_t size;                              /* of the file; -1: not a regular one */
    int64_t taken;                             /* bytes read from the file */
    bool    file_end, stream_open, stream_end; /* gzip: no more input; inside a member; after the last one */
    z_stream z;
    unsigned char chunk[CHUNK];
};

td__bytes *td__bytes_open(const char *who, const char *path)
{
    td__bytes *b = td__calloc(sizeof *b);
    if (!b)
        return NULL;
    b->who = who;
    b->fd = -1;
    b->path = td__strdup(path);
    if (!b->path)
        goto failed;
    size_t length = strlen(path);
    b->gzip = length > 3 && strcmp(path + length - 3, ".gz") == 0;
    b->fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (b->fd < 0 || fstat(b->fd, &about) != 0) {
        td__fail(TD_ERR_IO, "%s: %s: cannot be opened: %s", who, path, strerror(errno));
        goto failed;
    }
    if (S_ISDIR(about.st_mode)) {
        td__fail(TD_ERR_IO, "%s: %s: is a folder, expected a file", who, path);
        goto failed;
    }
    b->size = S_ISREG(about.st_mode) ? (int64_t)about.st_size : -1;
    return b;
failed:
    td__bytes_close(b);
    return NULL;
}

void td__bytes_close(td__bytes *b)
{
    if (!b)
        return;
    if (b->stream_open)
        inflateEnd(&b->z);
    if (b->fd >= 0)
        close(b->fd);
    td__free(b->path);
    td__free(b);
}

int64_t td__bytes_total(const td__bytes *b)
{
    return b->gzip ? -1 : b->size;
}

const char *td__bytes_path(const td__bytes *b)
{
    return b->path;
}

const char *td__bytes_unit(const td__bytes *b)
{
    return b->gzip ? "decompressed byte" : "byte";
}

/* n bytes of the file itself, fewer only at its end */
static int64_t from_file(td__bytes *b, void *into, size_t n)
{
    size_t got = 0;
    while (got < n) {
        ssize_t r = read(b->fd, (char *)into + got, n - got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return td__fail(TD_ERR_IO, "%s: %s: reading at byte %lld failed: %s", b->who, b->path, (long long)(b->taken + (int64_t)got),
                            strerror(errno));
        if (r == 0)
            break;
        got += (size_t)r;
    }
    b->taken += (int64_t)got;
    return (int64_t)got;
}

static int64_t place(const td__bytes *b)       /* of the next compressed byte */
{
    return b->taken - (int64_t)b->z.avail_in;
}

static int refill(td__bytes *b)
{
    if (b->z.avail_in > 0 || b->file_end)
        return 0;
    int64_t got = from_file(b, b->chunk, CHUNK);
    if (got < 0)
        return (int)got;
    b->file_end = got == 0;
    b->z.next_in = b->chunk;
    b->z.avail_in = (uInt)got;
    return 0;
}

/* The start of the first member, or what follows one: another member, or the end of the file. */
static int next_member(td__bytes *b)
{
    bool first = !b->stream_open;
    int rc = refill(b);
    if (rc != 0)
        return rc;
    if (b->z.avail_in == 0 && !first) {
        b->stream_end = true;
        return 0;
    }
    if (b->z.avail_in == 0)
        return td__fail(TD_ERR_FORMAT, "%s: %s: at byte 0: the file is empty, expected gzip's bytes 1f 8b", b->who, b->path);
    if (b->z.next_in[0] != 0x1f)
        return td__fail(TD_ERR_FORMAT, "%s: %s: at byte %lld: expected %s, got byte %02x", b->who, b->path, (long long)place(b),
                        first ? "gzip's bytes 1f 8b" : "the end of the file after the gzip stream", b->z.next_in[0]);
    if ((first ? inflateInit2(&b->z, 15 + 16) : inflateReset(&b->z)) != Z_OK)
        return td__fail(TD_ERR_MEMORY, "%s: %s: zlib could not start: %s", b->who, b->path, b->z.msg ? b->z.msg : "no memory");
    b->stream_open = true;
    return 0;
}

static int64_t from_gzip(td__bytes *b, void *into, size_t n)
{
    size_t got = 0;
    if (!b->stream_open) {
        int rc = next_member(b);
        if (rc != 0)
            return rc;
    }
    while (got < n && !b->stream_end) {
        int rc = refill(b);
        if (rc != 0)
            return rc;
        size_t want = n - got < (1u << 30) ? n - got : 1u << 30;
        b->z.next_out = (unsigned char *)into + got;
        b->z.avail_out = (uInt)want;
        int status = inflate(&b->z, Z_NO_FLUSH);
        got += want - b->z.avail_out;
        if (status == Z_STREAM_END) {
            rc = next_member(b);
            if (rc != 0)
                return rc;
        } else if (status != Z_OK && status != Z_BUF_ERROR) {
            return td__fail(status == Z_MEM_ERROR ? TD_ERR_MEMORY : TD_ERR_FORMAT,
                            "%s: %s: at byte %lld: the gzip stream is damaged: %s", b->who, b->path, (long long)place(b),
                            b->z.msg ? b->z.msg : "zlib says no more");
        } else if (b->file_end && b->z.avail_out > 0) {
            return td__fail(TD_ERR_FORMAT, "%s: %s: at byte %lld: the file ends inside the gzip stream", b->who, b->path,
                            (long long)b->taken);
        }
    }
    return (int64_t)got;
}

int64_t td__bytes_read(td__bytes *b, void *into, size_t n)
{
    return b->gzip ? from_gzip(b, into, n) : from_file(b, into, n);
}
