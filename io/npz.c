/* io/npz.c: reading npz: NumPy's zip file of npy arrays.
 *
 * libzip reads the directory and inflates; it is given the mapped file, so nothing is read twice. Everything a member says of itself is checked before
 * memory is taken for it: its npy header comes first, then a tensor of just that size is filled.
 */
#include <endian.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zip.h>
#include "io_impl.h"

enum { MEMBERS = 65535, TAIL = 66 << 10 };
typedef struct { char *name; zip_uint64_t place; } member;
struct td_npz {
    td__map *map;
    zip_t *zip;
    member *list; size_t n;                    /* in the file's order                                                      */
    uint32_t *sorted;                          /* by name                                                                  */
    int64_t most;
    td_npz *next, *prev;
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_npz *files, poison;

/* ---- opening ---------------------------------------------------------------------------------------------------------------- */

/* libzip takes some hundred bytes for each member that the directory promises. Without ZIP64 records that is 16 bits' worth; this finds
 * records that promise more. */
static int check_count(const char *who, const td__map *map)
{
    size_t from = map->size > TAIL ? map->size - TAIL : 0;
    for (size_t at = from; at + 20 <= map->size; at++) {
        uint64_t where, count;
        if (memcmp(map->data + at, "PK\6\7", 4) != 0)
            continue;
        memcpy(&where, map->data + at + 8, 8);
        where = le64toh(where);
        if (map->size < 56 || where > map->size - 56)
            continue;
        memcpy(&count, map->data + where + 32, 8);
        if (le64toh(count) > MEMBERS)
            return td__fail(TD_ERR_FORMAT, "%s: %s: at byte %llu: the directory promises %llu members, at most %d are possible", who, map->path,
                            (unsigned long long)where, (unsigned long long)le64toh(count), MEMBERS);
    }
    return 0;
}

static int by_name(const void *a, const void *b, void *list)
{
    return strcmp(((member *)list)[*(const uint32_t *)a].name, ((member *)list)[*(const uint32_t *)b].name);
}

static int list_members(const char *who, td_npz *f)
{
    zip_int64_t all = zip_get_num_entries(f->zip, 0);
    if (all > MEMBERS)
        return td__fail(TD_ERR_FORMAT, "%s: %s: has %lld members, at most %d are possible", who, f->map->path, (long long)all, MEMBERS);
    f->list = td__calloc((size_t)all * sizeof *f->list);
    f->sorted = td__alloc((size_t)all * sizeof *f->sorted);
    if (!f->list || !f->sorted)
        return TD_ERR_MEMORY;
    for (zip_int64_t i = 0; i < all; i++) {
        const char *name = zip_get_name(f->zip, (zip_uint64_t)i, 0);
        size_t n = name ? strlen(name) : 0;
        if (n < 4 || strcmp(name + n - 4, ".npy") != 0)
            continue;
        member *m = &f->list[f->n];
        m->place = (zip_uint64_t)i;
        m->name = td__strdup(name);
        if (!m->name)
            return TD_ERR_MEMORY;
        m->name[n - 4] = '\0';
        f->sorted[f->n] = (uint32_t)f->n;
        f->n++;
    }
    qsort_r(f->sorted, f->n, sizeof *f->sorted, by_name, f->list);
    for (size_t i = 1; i < f->n; i++)
        if (by_name(&f->sorted[i - 1], &f->sorted[i], f->list) == 0)
            return td__fail(TD_ERR_FORMAT, "%s: %s: the name \"%.80s\" is there twice", who, f->map->path, f->list[f->sorted[i]].name);
    return 0;
}

static int open_zip(const char *who, td_npz *f)
{
    zip_error_t error;
    int rc = check_count(who, f->map);
    if (rc != 0)
        return rc;
    zip_error_init(&error);
    zip_source_t *source = zip_source_buffer_create(f->map->data, f->map->size, 0, &error);
    f->zip = source ? zip_open_from_source(source, ZIP_RDONLY, &error) : NULL;
    if (!f->zip) {
        zip_source_free(source);
        rc = td__fail(TD_ERR_FORMAT, "%s: %s: is no zip file, as an npz file must be (in the reader's words: %s)", who, f->map->path,
                      zip_error_strerror(&error));
    }
    zip_error_fini(&error);
    return rc;
}

static void close_file(td_npz *f)
{
    if (f->zip)
        zip_discard(f->zip);
    for (size_t i = 0; i < f->n; i++)
        td__free(f->list[i].name);
    td__free(f->list);
    td__free(f->sorted);
    td__map_unref(f->map);
    td__free(f);
}

td_npz *td_npz_open(const char *path, const td_npz_opts *opts)
{
    TD_ENTER();
    static const char who[] = "td_npz_open";
    int64_t most = opts ? opts->max_bytes : 0;
    if (most < 0) {
        td__fail(TD_ERR_ARGUMENT, "%s: max_bytes is %lld, expected 1 or more", who, (long long)most);
        return &poison;
    }
    td__map *map = td__map_open(who, path);
    td_npz *f = map ? td__calloc(sizeof *f) : NULL;
    if (!f) {
        td__map_unref(map);
        return &poison;
    }
    f->map = map;
    f->most = most ? most : (INT64_C(64) << 20) + 32 * (int64_t)map->size;
    if (open_zip(who, f) != 0 || list_members(who, f) != 0) {
        close_file(f);
        return &poison;
    }
    pthread_mutex_lock(&lock);
    f->next = files;
    if (files)
        files->prev = f;
    files = f;
    pthread_mutex_unlock(&lock);
    return f;
}

void td_npz_free(td_npz *f)
{
    if (!f || f == &poison)
        return;
    pthread_mutex_lock(&lock);
    *(f->prev ? &f->prev->next : &files) = f->next;
    if (f->next)
        f->next->prev = f->prev;
    pthread_mutex_unlock(&lock);
    close_file(f);
}

void td__npz_free_all(void)
{
    while (files)
        td_npz_free(files);
}

/* ---- looking ---------------------------------------------------------------------------------------------------------------- */

/* 0; negative for NULL (after td__fail) and for the poisoned file. */
static int check(const char *who, const td_npz *f)
{
    if (!f)
        return td__fail(TD_ERR_ARGUMENT, "%s: the file is NULL", who);
    if (f != &poison)
        return 0;
    return td__pending() ? td__pending() : td__fail(TD_ERR_STATE, "%s: the file is the poisoned result of an earlier error", who);
}

static const member *find(const td_npz *f, const char *name)
{
    for (size_t low = 0, high = f->n; low < high;) {
        size_t middle = low + (high - low) / 2;
        const member *m = &f->list[f->sorted[middle]];
        int order = strcmp(name, m->name);
        if (order == 0)
            return m;
        *(order < 0 ? &high : &low) = order < 0 ? middle : middle + 1;
    }
    return NULL;
}

size_t td_npz_count(const td_npz *f)
{
    TD_ENTER();
    return check("td_npz_count", f) == 0 ? f->n : 0;
}

const char *td_npz_name(const td_npz *f, size_t i)
{
    TD_ENTER();
    if (check("td_npz_name", f) != 0)
        return NULL;
    if (i < f->n)
        return f->list[i].name;
    td__fail(TD_ERR_ARGUMENT, "td_npz_name: %s has %zu arrays, there is no number %zu", f->map->path, f->n, i);
    return NULL;
}

bool td_npz_has(const td_npz *f, const char *name)
{
    TD_ENTER();
    if (check("td_npz_has", f) != 0)
        return false;
    if (!name)
        td__fail(TD_ERR_ARGUMENT, "td_npz_has: the name is NULL");
    return name && find(f, name);
}

/* ---- one array -------------------------------------------------------------------------------------------------------------- */

typedef struct { td__npy npy; td__map map; zip_file_t *from; const char *name; } reader;   /* map: what the npy parser looks at  */

static int trouble(const reader *r, const char *what)
{
    return td__fail(TD_ERR_FORMAT, "%s: %s: %s (in the reader's words: %s)", r->npy.who, r->map.path, what, zip_file_strerror(r->from));
}

static int fill(reader *r, void *into, size_t n)
{
    for (size_t at = 0; at < n;) {
        zip_int64_t got = zip_fread(r->from, (char *)into + at, n - at);
        if (got <= 0)
            return trouble(r, got < 0 ? "it cannot be unpacked" : "it ends before the size that the directory says");
        at += (size_t)got;
    }
    return 0;
}

/* What the directory says of a member: can it be read, and may it take so much memory? */
static int check_stat(const td_npz *f, const reader *r, const zip_stat_t *s)
{
    const zip_uint64_t all = ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
    if ((s->valid & all) != all)
        return td__fail(TD_ERR_FORMAT, "%s: %s: the directory does not say its size and method", r->npy.who, r->map.path);
    if (s->encryption_method != ZIP_EM_NONE || (s->comp_method != ZIP_CM_STORE && s->comp_method != ZIP_CM_DEFLATE))
        return td__fail(TD_ERR_FORMAT, "%s: %s: is %s, expected stored or deflated", r->npy.who, r->map.path,
                        s->encryption_method != ZIP_EM_NONE ? "encrypted" : "packed by a method other than deflate");
    if (s->comp_size > f->map->size || (s->comp_method == ZIP_CM_STORE && s->size != s->comp_size))
        return td__fail(TD_ERR_FORMAT, "%s: %s: takes %llu bytes by the directory, in a file of %zu", r->npy.who, r->map.path,
                        (unsigned long long)(s->comp_size > f->map->size ? s->comp_size : s->size), f->map->size);
    if (s->comp_method == ZIP_CM_DEFLATE && s->size > (zip_uint64_t)f->most)
        return td__fail(TD_ERR_FORMAT, "%s: %s: would take %llu bytes unpacked, at most %lld are allowed (max_bytes)", r->npy.who, r->map.path,
                        (unsigned long long)s->size, (long long)f->most);
    return 0;
}

/* The header into memory of its own (a small file may say that its header is large), then the dict. */
static int read_header(reader *r, unsigned char **header)
{
    unsigned char first[12] = { 0 };
    size_t n = r->map.size < sizeof first ? r->map.size : sizeof first;
    int rc = fill(r, first, n);
    r->map.data = first;
    if (rc == 0)
        rc = td__npy_prefix(&r->npy);
    if (rc != 0)
        return rc;
    size_t kept = n < r->npy.end ? n : r->npy.end;          /* version 1 with no header at all: what follows is data          */
    *header = td__alloc(r->npy.end + 12);
    if (!*header)
        return TD_ERR_MEMORY;
    memcpy(*header, first, n);
    rc = fill(r, *header + kept, r->npy.end - kept);
    r->map.data = *header;
    return rc ? rc : td__npy_header(&r->npy);
}

static td_tensor *read_elements(reader *r, const unsigned char *header)
{
    td_tensor *x = td__tensor_new(r->npy.shape, r->npy.dtype, (td_device){ TD_CPU, 0 });
    if (x->poisoned)
        return x;
    unsigned char *data = td__ptr(x), extra;
    size_t n = r->map.size - r->npy.end, had = r->npy.end < 12 && r->map.size > r->npy.end ? 12 - r->npy.end : 0;
    had = had < n ? had : n;
    if (had > 0)
        memcpy(data, header + r->npy.end, had);
    int rc = fill(r, data + had, n - had);
    if (rc == 0 && zip_fread(r->from, &extra, 1) != 0)       /* the end is where the checksum is compared                      */
        rc = trouble(r, "it is damaged, or longer than the directory says");
    for (size_t i = 0; rc == 0 && r->npy.dtype == TD_BOOL && i < n; i++)
        if (data[i] > 1)
            rc = td__fail(TD_ERR_FORMAT, "%s: %s: at byte %zu: the array is of booleans, expected 0 or 1, got %u", r->npy.who, r->map.path,
                          r->npy.end + i, data[i]);
    if (rc == 0)
        return td__npy_finish(&r->npy, x);
    td__tensor_unref(x);
    return td__poison();
}

static td_tensor *read_member(td_npz *f, const member *m, const char *who)
{
    char path[4352];
    snprintf(path, sizeof path, "%.4000s: %.200s.npy", f->map->path, m->name);
    reader r = { .npy = { .who = who }, .map = { .path = path } };
    r.npy.map = &r.map;
    zip_stat_t s;
    zip_stat_init(&s);
    if (zip_stat_index(f->zip, m->place, 0, &s) != 0) {
        td__fail(TD_ERR_FORMAT, "%s: %s: %s", who, path, zip_strerror(f->zip));
        return td__poison();
    }
    if (check_stat(f, &r, &s) != 0)
        return td__poison();
    r.map.size = (size_t)s.size;
    r.from = zip_fopen_index(f->zip, m->place, 0);
    if (!r.from) {
        td__fail(TD_ERR_FORMAT, "%s: %s: cannot be read (in the reader's words: %s)", who, path, zip_strerror(f->zip));
        return td__poison();
    }
    unsigned char *header = NULL;
    td_tensor *x = read_header(&r, &header) == 0 ? read_elements(&r, header) : td__poison();
    td__free(header);
    zip_fclose(r.from);
    return x;
}

td_tensor *td_npz_get(td_npz *f, const char *name)
{
    TD_ENTER();
    static const char who[] = "td_npz_get";
    if (check(who, f) != 0)
        return td__poison();
    const member *m = name ? find(f, name) : NULL;
    if (!m) {
        if (name)
            td__fail(TD_ERR_ARGUMENT, "%s: %s has no array \"%.200s\" among its %zu", who, f->map->path, name, f->n);
        else
            td__fail(TD_ERR_ARGUMENT, "%s: the name is NULL", who);
        return td__poison();
    }
    td_tensor *x = td__scoped_tensor(read_member(f, m, who));
    return x->poisoned ? x : td_to(x, td_device_default());
}
