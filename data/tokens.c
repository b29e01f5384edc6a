/* data/tokens.c: token ids for language models: the bytes of a text, or shards of 16- or 32-bit ids.
 *
 * Files are mapped, not read: the system keeps what is used and forgets the rest, however many gigabytes there are, and
 * ranks of one host share its pages. All files together are one stream; a row is a window of it, wherever files end. Opening
 * touches the first page of each file only, so ids are compared with the vocabulary when their row is read.
 */
#include "data_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char who[] = "td_dataset_tokens";
enum { HEADER_BYTES = 1024 };                  /* llm.c: 256 int32                                                          */

typedef struct {
    char   *path;
    void   *map;                               /* the whole file                                                            */
    size_t  size;
    const unsigned char *ids;
    int     width;                             /* bytes of one id: 1, 2 or 4                                                */
    int64_t first, count;                      /* in the stream                                                             */
} shard;
typedef struct {
    shard  *list;
    size_t  n, room;
    int64_t context, stride, vocab, begin, count;   /* begin, count: the part, in tokens                                    */
} token_set;

static uint32_t little_endian(const unsigned char *p, int width)
{
    uint32_t v = p[0];
    for (int i = 1; i < width; i++)
        v |= (uint32_t)p[i] << 8 * i;
    return v;
}

/* ---- opening ----------------------------------------------------------------------------------------------------------- */

static int map_file(shard *s)
{
    int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = 0;   /* a pipe without a writer must not hang the job    */
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0)
        rc = td__fail(TD_ERR_IO, "%s: %s: cannot be opened: %s", who, s->path, strerror(errno));
    else if (!S_ISREG(about.st_mode))
        rc = td__fail(TD_ERR_IO, "%s: %s: is %s, expected a file", who, s->path, S_ISDIR(about.st_mode) ? "a folder" : "no regular file");
    else if (about.st_size == 0)
        rc = td__fail(TD_ERR_FORMAT, "%s: %s: the file is empty, expected tokens", who, s->path);
    if (rc == 0) {
        s->size = (size_t)about.st_size;
        s->map = mmap(NULL, s->size, PROT_READ, MAP_SHARED, fd, 0);
        if (s->map == MAP_FAILED) {
            s->map = NULL;
            rc = td__fail(TD_ERR_IO, "%s: %s: its %zu bytes cannot be mapped: %s", who, s->path, s->size, strerror(errno));
        }
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

/* llm.c's header, when the file begins with one: where ids begin and how many there are. */
static int read_header(shard *s)
{
    static const struct { uint32_t magic, version; int width; } known[] = { { 20240520, 1, 2 }, { 20240801, 7, 4 } };
    const unsigned char *p = s->map;
    for (size_t i = 0; i < TD_COUNT(known); i++) {
        if (s->size < 12 || little_endian(p, 4) != known[i].magic || little_endian(p + 4, 4) != known[i].version)
            continue;
        uint64_t count = little_endian(p + 8, 4), want = HEADER_BYTES + count * (uint64_t)known[i].width;
        if (s->size != want)
            return td__fail(TD_ERR_FORMAT,
                            "%s: %s: at byte 8: the header promises %llu ids of %d bytes after its %d bytes, so %llu in all, but the "
                            "file has %zu", who, s->path, (unsigned long long)count, known[i].width, HEADER_BYTES, (unsigned long long)want, s->size);
        if (s->width != known[i].width)
            return td__fail(TD_ERR_FORMAT, "%s: %s: at byte 0: the header says ids of %d bytes, but kind asks for %d", who, s->path,
                            known[i].width, s->width);
        s->ids = p + HEADER_BYTES;
        s->count = (int64_t)count;
    }
    return 0;
}

static bool ends_in(const char *text, const char *suffix)
{
    size_t n = strlen(text), k = strlen(suffix);
    return n >= k && strcmp(text + n - k, suffix) == 0;
}

static int open_shard(token_set *set, const char *path, td_tokens_kind kind)
{
    if (set->n == set->room) {
        size_t room = set->room ? 2 * set->room : 8;
        shard *grown = td__grow(set->list, set->room * sizeof *grown, room * sizeof *grown);
        if (!grown)
            return TD_ERR_MEMORY;
        set->list = grown;
        set->room = room;
    }
    shard *s = &set->list[set->n];
    *s = (shard){ .path = td__strdup(path) };
    if (!s->path)
        return TD_ERR_MEMORY;
    set->n++;
    int rc = map_file(s);
    if (rc != 0)
        return rc;
    bool automatic = kind == TD_TOKENS_AUTO;
    if (automatic)
        kind = ends_in(path, ".bin") ? TD_TOKENS_U16 : TD_TOKENS_BYTES;
    s->width = kind == TD_TOKENS_BYTES ? 1 : kind == TD_TOKENS_U16 ? 2 : 4;
    /* a header says its own width: only where the caller asked for another one is that an error */
    if (automatic && s->width == 2 && s->size >= 4 && little_endian(s->map, 4) == 20240801)
        s->width = 4;
    rc = s->width > 1 ? read_header(s) : 0;
    if (rc == 0 && !s->ids) {
        if (s->size % (size_t)s->width != 0)
            return td__fail(TD_ERR_FORMAT, "%s: %s: its %zu bytes are no whole number of %d-byte ids", who, path, s->size, s->width);
        s->ids = s->map;
        s->count = (int64_t)(s->size / (size_t)s->width);
    }
    s->first = set->n > 1 ? s[-1].first + s[-1].count : 0;
    return rc;
}

/* A file of that very name goes before a pattern. */
static int open_pattern(token_set *set, const char *path, td_tokens_kind kind)
{
    if (access(path, F_OK) == 0 || !strpbrk(path, "*?["))
        return open_shard(set, path, kind);
    glob_t found;
    int rc = glob(path, GLOB_ERR, NULL, &found);
    if (rc == GLOB_NOMATCH)
        return td__fail(TD_ERR_IO, "%s: %s: no file has a name like that", who, path);
    if (rc != 0)
        return td__fail(rc == GLOB_NOSPACE ? TD_ERR_MEMORY : TD_ERR_IO, "%s: %s: the folder cannot be read: %s", who, path,
                        strerror(errno));
    for (size_t i = 0; i < found.gl_pathc && rc == 0; i++)
        rc = open_shard(set, found.gl_pathv[i], kind);
    globfree(&found);
    return rc;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------- */

static const shard *shard_of(const token_set *set, int64_t token)
{
    size_t low = 0, high = set->n;             /* the last one that begins at or before it; empty ones (a header alone) are passed over */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (set->list[middle].first <= token)
            low = middle;
        else
            high = middle;
    }
    return &set->list[low];
}

static int copy_ids(const token_set *set, const shard *s, int64_t at, int64_t n, int64_t *into)
{
    const unsigned char *p = s->ids + at * s->width;
    switch (s->width) {
    case 1:
        for (int64_t i = 0; i < n; i++)
            into[i] = p[i];
        break;
    case 2:
        for (int64_t i = 0; i < n; i++)
            into[i] = little_endian(p + 2 * i, 2);
        break;
    default:
        for (int64_t i = 0; i < n; i++)
            into[i] = little_endian(p + 4 * i, 4);
    }
    for (int64_t i = 0; set->vocab > 0 && i < n; i++)
        if (into[i] >= set->vocab)
            return td__fail(TD_ERR_FORMAT, "%s: %s: token %lld is %lld, expected 0 to %lld", who, s->path, (long long)(at + i),
                            (long long)into[i], (long long)(set->vocab - 1));
    return 0;
}

static int read_ids(const token_set *set, int64_t token, int64_t n, int64_t *into)
{
    while (n > 0) {
        const shard *s = shard_of(set, token);
        int64_t at = token - s->first, here = s->count - at < n ? s->count - at : n;
        int rc = copy_ids(set, s, at, here, into);
        if (rc != 0)
            return rc;
        token += here, into += here, n -= here;
    }
    return 0;
}

static int read_row(void *user, int64_t row, void *const *into)
{
    const token_set *set = user;
    int64_t begin = set->begin + row * set->stride, *x = into[0], *y = into[1];
    int rc = read_ids(set, begin, set->context, x);
    if (rc != 0)
        return rc;
    memcpy(y, x + 1, (size_t)(set->context - 1) * sizeof *y);
    return read_ids(set, begin + set->context, 1, y + set->context - 1);
}

static void close_set(void *user)
{
    token_set *set = user;
    for (size_t i = 0; i < set->n; i++) {
        if (set->list[i].map)
            munmap(set->list[i].map, set->list[i].size);
        td__free(set->list[i].path);
    }
    td__free(set->list);
    td__free(set);
}

/* ---- the public face ----------------------------------------------------------------------------------------------------- */

static int check(const char *const *paths, size_t n, const td_tokens_opts *o)
{
    if (!paths || n == 0)
        return td__fail(TD_ERR_ARGUMENT, "%s: no path is given, expected one or more", who);
    for (size_t i = 0; i < n; i++)
        if (!paths[i] || !*paths[i])
            return td__fail(TD_ERR_ARGUMENT, "%s: path %zu is %s, expected a file or a pattern", who, i, paths[i] ? "empty" : "NULL");
    if (o->context < 0 || o->context > INT64_MAX / 32)
        return td__fail(TD_ERR_ARGUMENT, "%s: context is %lld, expected 1 or more (0 means 1024)", who, (long long)o->context);
    if (o->stride < 0)
        return td__fail(TD_ERR_ARGUMENT, "%s: stride is %lld, expected 1 or more (0 means context)", who, (long long)o->stride);
    if (o->vocab < 0)
        return td__fail(TD_ERR_ARGUMENT, "%s: vocab is %lld, expected 1 or more (0: ids are not compared)", who, (long long)o->vocab);
    double to = o->to != 0 ? o->to : 1;
    if (!(o->from >= 0 && o->from < to && to <= 1))
        return td__fail(TD_ERR_ARGUMENT, "%s: the part from %g to %g is none, expected 0 <= from < to <= 1", who, o->from, to);
    if ((unsigned)o->kind > TD_TOKENS_U32)
        return td__fail(TD_ERR_ARGUMENT, "%s: kind is %d, expected TD_TOKENS_AUTO, _BYTES, _U16 or _U32", who, (int)o->kind);
    return 0;
}

td_dataset *td_dataset_tokens(const char *const *paths, size_t n, const td_tokens_opts *opts)
{
    TD_ENTER();
    static const td_tokens_opts standard;
    const td_tokens_opts *o = opts ? opts : &standard;
    if (check(paths, n, o) != 0)
        return &td__dataset_poison;
    token_set *set = td__calloc(sizeof *set);
    if (!set)
        return &td__dataset_poison;
    set->context = o->context ? o->context : 1024;
    set->stride = o->stride ? o->stride : set->context;
    set->vocab = o->vocab;
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = open_pattern(set, paths[i], o->kind);
    if (rc == 0) {
        int64_t all = set->list[set->n - 1].first + set->list[set->n - 1].count;
        set->begin = (int64_t)floor(o->from * (double)all);
        int64_t end = o->to == 0 || o->to >= 1 ? all : (int64_t)floor(o->to * (double)all);
        set->count = end - set->begin;
        if (set->count <= set->context)
            rc = td__fail(TD_ERR_ARGUMENT, "%s: %s%s: tokens %lld to %lld are %lld, but one row of context %lld needs %lld", who, paths[0],
                          n > 1 ? " and others" : "", (long long)set->begin, (long long)end, (long long)set->count, (long long)set->context,
                          (long long)set->context + 1);
    }
    if (rc == 0) {
        td_field field[2] = { { { 1, { set->context } }, TD_I64 }, { { 1, { set->context } }, TD_I64 } };
        td_dataset_source source = { .rows = (set->count - set->context - 1) / set->stride + 1, .field = field, .n_fields = 2,
                                     .read = read_row, .close = close_set };
        td_dataset *data = td_dataset_new(&source, set);
        if (data != &td__dataset_poison)
            return data;
    }
    close_set(set);
    return &td__dataset_poison;
}
