/* io/shards.c: one safetensors file, or several with Hugging Face's index: {"metadata": {"total_size": …}, "weight_map": {name: file, …}}.
 *
 * The index is cut into members like a header (scan.c), so its memory stays within its text. It must say exactly what the shards hold: every name
 * once, in the shard that has it, and nothing in a shard unsaid. Shards lie beside the index: a file name with a separator is refused.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "scan.h"

enum { INDEX_ROOM = 16 << 20, SHARDS = 4096, FILE_NAME_ROOM = 255 };
typedef struct { td__parts *out; const char *who; size_t folder; bool *said; size_t n_said; } reading;   /* folder: bytes of the path */

static td__part *shard_named(const td__parts *s, const char *name)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->shard[i].name && strcmp(s->shard[i].name, name) == 0)
            return &s->shard[i];
    return NULL;
}

static bool plain_name(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > FILE_NAME_ROOM || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (; *name; name++)
        if (*name == '/' || *name == '\\' || (unsigned char)*name < 0x20)
            return false;
    return true;
}

static int add_shard(td__parts *s, const char *who, const char *path, const char *name)
{
    td__part *grown = td__grow(s->shard, s->n * sizeof *grown, (s->n + 1) * sizeof *grown);
    if (!grown)
        return TD_ERR_MEMORY;
    s->shard = grown;
    td__part *one = &s->shard[s->n];
    *one = (td__part){ .base = s->total, .name = name ? td__strdup(name) : NULL };
    if (name && !one->name)
        return TD_ERR_MEMORY;
    s->n++;
    one->file = td__st_open(who, path);
    if (!one->file)
        return td__pending();
    s->total += one->file->index.n;
    return 0;
}

/* The text of one side of a member, up to TD__NAME_ROOM bytes. */
static int text_of(const td__scan *s, uint32_t at, uint32_t length, const char *what, char into[static TD__NAME_ROOM])
{
    char *room = into;
    if (length > TD__NAME_ROOM)
        return td__scan_bad(s, at, "%s has %u bytes, at most %d are expected", what, length, TD__NAME_ROOM);
    return td__scan_decode(s, at, length, what, &room) ? 0 : TD_ERR_FORMAT;
}

/* First round: every file that is named, once. */
static int open_shard(reading *r, const td__scan *s, const td__member *m)
{
    char name[TD__NAME_ROOM], shown[96], path[4096 + FILE_NAME_ROOM + 1];
    int rc = text_of(s, m->at, m->length, "the file of a tensor", name);
    if (rc != 0 || shard_named(r->out, name))
        return rc;
    if (!plain_name(name))
        return td__scan_bad(s, m->at, "\"%s\" is no name of a file beside the index", td__scan_shown(name, shown));
    if (r->out->n == SHARDS)
        return td__scan_bad(s, m->at, "more than %d files are named", SHARDS);
    snprintf(path, sizeof path, "%.*s%s", (int)r->folder, s->map->path, name);
    return add_shard(r->out, r->who, path, name);
}

/* Second round: is the tensor there, and only there? */
static int check_member(reading *r, const td__scan *s, const td__member *m)
{
    char name[TD__NAME_ROOM], file[TD__NAME_ROOM], shown[96], other[96];
    int rc = text_of(s, m->key, m->key_length, "a tensor's name", name);
    if (rc == 0)
        rc = text_of(s, m->at, m->length, "the file of a tensor", file);
    if (rc != 0)
        return rc;
    const td__part *in = NULL;
    size_t place = 0;
    td__scan_shown(name, shown);
    for (size_t i = 0; i < r->out->n; i++) {
        const td__part *one = &r->out->shard[i];
        const td__st_entry *e = td__st_find(&one->file->index, name);
        if (e && in)
            return td__scan_bad(s, m->key, "the tensor \"%s\" is in two files, \"%s\" and another", shown, td__scan_shown(in->name, other));
        if (e) {
            in = one;
            place = one->base + (size_t)(e - one->file->index.entry);
        }
    }
    if (!in || strcmp(in->name, file) != 0)
        return td__scan_bad(s, m->key, "the tensor \"%s\" is not in the file that the index says, \"%s\"", shown, td__scan_shown(file, other));
    if (r->said[place])
        return td__scan_bad(s, m->key, "the name \"%s\" is there twice", shown);
    r->said[place] = true;
    r->n_said++;
    return 0;
}

/* Calls fn with each member of the object that s->at points at. */
static int each(td__scan *s, reading *r, int (*fn)(reading *r, const td__scan *s, const td__member *m))
{
    td__member m;
    int rc = td__scan_expect(s, '{');
    for (bool first = true; rc == 0; first = false) {
        int more = td__scan_member(s, &m, first, TD__NAME_ROOM);
        if (more <= 0)
            return more;
        rc = fn(r, s, &m);
    }
    return rc;
}

static int find_map(const td__scan *whole, td__scan *map)
{
    td__scan s = *whole;
    td__member m;
    bool there = false;
    int rc = td__scan_expect(&s, '{');
    for (bool first = true; rc == 0; first = false) {
        int more = td__scan_member(&s, &m, first, TD__NAME_ROOM);
        if (more < 0)
            return more;
        if (more == 0)
            break;
        static const char key[] = "\"weight_map\"";
        if (m.key_length != sizeof key - 1 || memcmp(s.text + m.key, key, sizeof key - 1) != 0)
            continue;
        if (there)
            return td__scan_bad(&s, m.key, "\"weight_map\" is there twice");
        there = true;
        *map = *whole;
        map->at = m.at;
        map->n = m.at + m.length;
    }
    td__scan_space(&s);
    char text[32];
    if (rc == 0 && s.at < s.n)
        rc = td__scan_bad(&s, s.at, "expected only spaces after the index's object, got %s", td__scan_got(&s, text));
    return rc == 0 && !there ? td__scan_bad(&s, 0, "the index has no \"weight_map\"") : rc;
}

static int read_index(td__parts *out, const char *who, const td__map *file)
{
    if (file->size > INDEX_ROOM)
        return td__fail(TD_ERR_FORMAT, "%s: %s: the index has %zu bytes, at most %d are expected", who, file->path, file->size, INDEX_ROOM);
    const char *slash = strrchr(file->path, '/');
    td__scan whole = { .who = who, .whole = "index", .map = file, .text = (const char *)file->data, .n = (uint32_t)file->size }, map, again;
    reading r = { .out = out, .who = who, .folder = slash ? (size_t)(slash - file->path) + 1 : 0 };
    if (r.folder > 4095)
        return td__fail(TD_ERR_ARGUMENT, "%s: the path has more than 4095 bytes", who);
    int rc = find_map(&whole, &map);
    again = map;
    if (rc == 0)
        rc = each(&map, &r, open_shard);
    r.said = rc == 0 ? td__calloc(out->total + 1) : NULL;
    if (!r.said)
        return rc ? rc : TD_ERR_MEMORY;
    rc = each(&again, &r, check_member);
    if (rc == 0 && r.n_said != out->total)
        rc = td__fail(TD_ERR_FORMAT, "%s: %s: the files of the index hold %zu tensors, but it names %zu", who, file->path, out->total, r.n_said);
    td__free(r.said);
    return rc;
}

static bool ends(const char *path, const char *with)
{
    size_t n = strlen(path), k = strlen(with);
    return n >= k && strcmp(path + n - k, with) == 0;
}

int td__parts_open(td__parts *s, const char *who, const char *path)
{
    static const char index_end[] = ".index.json";
    *s = (td__parts){ 0 };
    char beside[4096];
    bool index = path && ends(path, ".json");
    if (path && *path && !index && access(path, F_OK) != 0 && snprintf(beside, sizeof beside, "%s%s", path, index_end) < (int)sizeof beside &&
        access(beside, F_OK) == 0) {
        path = beside;
        index = true;
    }
    td__map *map = index ? td__map_open(who, path) : NULL;
    int rc = index ? map ? read_index(s, who, map) : td__pending() : add_shard(s, who, path, NULL);
    td__map_unref(map);
    if (rc != 0)
        td__parts_close(s);
    return rc;
}

void td__parts_close(td__parts *s)
{
    for (size_t i = 0; i < s->n; i++) {
        td__st_close(s->shard[i].file);
        td__free(s->shard[i].name);
    }
    td__free(s->shard);
    *s = (td__parts){ 0 };
}

const td__st_entry *td__parts_find(const td__parts *s, const char *name, const td__part **in)
{
    for (size_t i = 0; i < s->n; i++) {
        const td__st_entry *e = td__st_find(&s->shard[i].file->index, name);
        if (e) {
            *in = &s->shard[i];
            return e;
        }
    }
    return NULL;
}
