/* io/shards_write.c: td_save_sharded: a module's state in files of limited size, with Hugging Face's index.
 *
 * Shards come first, each whole or not at all, and the index last. What an earlier save left under the other name (one file beside an index) is
 * removed then, so that a load can find only one of them.
 */
#include <jansson.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io_impl.h"

static const char who[] = "td_save_sharded";
enum { SHARDS = 4096, PATH_ROOM = 4096 };

static int64_t bytes_of(const td_tensor *x)
{
    return td__shape_numel(x->shape) * (int64_t)td_dtype_size(x->dtype);
}

/* How many of the slots from i on go into one shard: as many as fit, one at least. */
static size_t fitting(const td__io_slots *s, size_t i, int64_t limit)
{
    size_t n = 1;
    int64_t sum = bytes_of(s->list[i].tensor);
    while (i + n < s->n && bytes_of(s->list[i + n].tensor) <= limit - sum)
        sum += bytes_of(s->list[i + n++].tensor);
    return n;
}

static int write_index(const char *path, json_t *map, int64_t total)
{
    json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *text = index ? json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(index);
    if (!text)
        return td__fail(TD_ERR_MEMORY, "%s: no memory for the index", who);
    td__atomic_file f;
    int rc = td__atomic_open(&f, who, path);
    if (rc == 0)
        rc = td__atomic_write(&f, text, strlen(text));
    if (rc == 0)
        td__atomic_write(&f, "\n", 1);
    rc = td__atomic_close(&f);
    free(text);
    return rc;
}

static int remove_old(const char *path)
{
    if (unlink(path) == 0 || errno == ENOENT)
        return 0;
    return td__fail(TD_ERR_IO, "%s: %s: an earlier save's file cannot be removed: %s", who, path, strerror(errno));
}

/* stem: the path without ".safetensors". */
static int write_shards(const td__io_slots *s, int64_t limit, int shards, const char *stem, const char *index)
{
    td_named *named = td__alloc(s->n * sizeof *named);
    json_t *map = json_object();
    int64_t total = 0;
    int rc = named && map ? 0 : td__fail(TD_ERR_MEMORY, "%s: no memory for the index", who), number = 0;
    for (size_t i = 0, n; i < s->n && rc == 0; i += n) {
        char path[PATH_ROOM + 64];
        snprintf(path, sizeof path, "%s-%05d-of-%05d.safetensors", stem, ++number, shards);
        const char *slash = strrchr(path, '/');
        n = fitting(s, i, limit);
        for (size_t k = 0; k < n; k++) {
            named[k] = (td_named){ s->list[i + k].name, s->list[i + k].tensor };
            total += bytes_of(named[k].tensor);
            json_object_set_new(map, named[k].name, json_string(slash ? slash + 1 : path));
        }
        rc = td__st_save(who, path, TD__PLAIN, named, n, &(td_text_pair){ "format", "pt" }, 1);
    }
    if (rc == 0)
        rc = write_index(index, map, total);
    json_decref(map);
    td__free(named);
    return rc;
}

static int save(const td__io_slots *s, td_module *m, const char *path, int64_t limit)
{
    static const char last[] = ".safetensors";
    size_t n = strlen(path), k = sizeof last - 1;
    char stem[PATH_ROOM], index[PATH_ROOM + 16];
    if (n <= k || n >= sizeof stem || strcmp(path + n - k, last) != 0 || path[n - k - 1] == '/')
        return td__fail(TD_ERR_ARGUMENT, "%s: the path is \"%.200s\", expected a name that ends in \"%s\"", who, path, last);
    snprintf(stem, sizeof stem, "%.*s", (int)(n - k), path);
    snprintf(index, sizeof index, "%s.index.json", path);
    size_t shards = 0;
    for (size_t i = 0; i < s->n; i += fitting(s, i, limit))
        shards++;
    if (shards > SHARDS)
        return td__fail(TD_ERR_ARGUMENT, "%s: max_shard_bytes %lld would make %zu files, at most %d are possible", who, (long long)limit, shards,
                        SHARDS);
    int rc = shards <= 1 ? td__save(who, m, path) : write_shards(s, limit, (int)shards, stem, index);
    return rc ? rc : remove_old(shards <= 1 ? index : path);
}

int td_save_sharded(td_module *m, const char *path, const td_save_opts *opts)
{
    TD_ENTER();
    int64_t limit = opts && opts->max_shard_bytes ? opts->max_shard_bytes : INT64_C(5000000000);
    int rc = td__module_check(who, m);
    if (rc == 0)
        rc = td__pending();
    if (rc == 0 && (!path || limit < 0))
        rc = td__fail(TD_ERR_ARGUMENT, path ? "%s: max_shard_bytes is %lld, expected 1 or more" : "%s: the path is NULL", who, (long long)limit);
    if (rc != 0)
        return rc;
    td__io_slots s = { 0 };
    rc = td__io_slots_collect(&s, m, "");
    if (rc == 0)
        rc = save(&s, m, path, limit);
    td__io_slots_free(&s);
    return rc;
}
