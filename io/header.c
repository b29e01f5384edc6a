/* io/header.c: the header of a safetensors file: 8 bytes of length (little-endian), then one JSON object: name -> {"dtype", "shape",
 * "data_offsets"}, and perhaps "__metadata__": text -> text; then the data, without holes or overlaps.
 *
 * A JSON document as a tree takes thirty times the bytes of its text, and a hostile header may have 100 MB. So the two outer levels are
 * only cut into members here, without recursion, and the library parses one name, one description (4 KiB at most) or one text at
 * a time. What is kept is an index that is never larger than the header.
 */
#include <endian.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io_impl.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are used where they lie in the file, which is little-endian");

enum { DEEPEST = 16, LEAST = sizeof "{'dtype':'U8','shape':[],'data_offsets':[0,0]}" - 1 };
typedef struct { const char *who; const td__map *map; const char *text; uint32_t n, at; } scan;
static const char metadata_key[] = "\"__metadata__\"";

static TD_PRINTF(3, 4) int bad(const scan *s, size_t at, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td__fail(TD_ERR_FORMAT, "%s: %s: at byte %zu: %s", s->who, s->map->path, 8 + at, text);
}

/* A name from a file as a sentence may show it: no control characters, not too long. */
static const char *shown(const char *name, char into[static 96])
{
    size_t n = 0;
    for (; name[n] && n < 80; n++)
        into[n] = (unsigned char)name[n] < 0x20 || name[n] == 0x7f ? '?' : name[n];
    strcpy(into + n, name[n] ? "…" : "");
    return into;
}

static const char *got(const scan *s, char into[static 32])
{
    unsigned char c = s->at < s->n ? (unsigned char)s->text[s->at] : 0;
    if (s->at >= s->n)
        strcpy(into, "the header's end");
    else
        snprintf(into, 32, c > 0x20 && c < 0x7f ? "'%c'" : "byte 0x%02x", c);
    return into;
}

/* ---- cutting -------------------------------------------------------------------------------------------------------- */

static void space(scan *s)
{
    while (s->at < s->n && strchr(" \t\r\n", s->text[s->at]) && s->text[s->at])
        s->at++;
}

static int expect(scan *s, char wanted)
{
    char text[32];
    space(s);
    if (s->at >= s->n || s->text[s->at] != wanted)
        return bad(s, s->at, "expected '%c', got %s", wanted, got(s, text));
    s->at++;
    return 0;
}

/* Leaves s->at behind the closing quote. */
static int string(scan *s, size_t room)
{
    char text[32];
    uint32_t begin = s->at;
    if (s->at >= s->n || s->text[s->at] != '"')
        return bad(s, s->at, "expected a text in quotes, got %s", got(s, text));
    for (s->at++; s->at < s->n; s->at++) {
        if (s->text[s->at] == '\\') {
            s->at++;
        } else if (s->text[s->at] == '"') {
            s->at++;
            return s->at - begin > room ? bad(s, begin, "a text has %u bytes, at most %zu are expected", s->at - begin, room) : 0;
        }
    }
    return bad(s, begin, "a text has no closing quote before the header's end");
}

/* Leaves s->at behind one value of any kind. Brackets are only counted: whether they match is the parser's matter. */
static int value(scan *s)
{
    char text[32];
    int depth = 0;
    do {
        space(s);
        char c = s->at < s->n ? s->text[s->at] : '\0';
        if (s->at >= s->n || (depth == 0 && c && strchr("]},:", c)))
            return bad(s, s->at, "expected a value, got %s", got(s, text));
        if (c == '"') {
            if (string(s, TD__TEXT_ROOM) != 0)
                return TD_ERR_FORMAT;
        } else if (c == '{' || c == '[') {
            if (++depth > DEEPEST)
                return bad(s, s->at, "brackets are nested more than %d deep", DEEPEST);
            s->at++;
        } else if (c == '}' || c == ']') {
            depth--;
            s->at++;
        } else if (c == ',' || c == ':') {
            s->at++;
        } else {
            while (s->at < s->n && !(s->text[s->at] && strchr(" \t\r\n,:[]{}\"", s->text[s->at])))
                s->at++;
        }
    } while (depth > 0);
    return 0;
}

typedef struct { uint32_t key, key_length, at, length; } member;

/* The next member of an object whose opening bracket is behind s->at: 1, 0 at its end (s->at behind the bracket), or negative. */
static int next_member(scan *s, member *m, bool first, size_t room)
{
    space(s);
    if (s->at < s->n && s->text[s->at] == '}') {
        s->at++;
        return 0;
    }
    int rc = first ? 0 : expect(s, ',');
    space(s);
    m->key = s->at;
    if (rc == 0)
        rc = string(s, room);
    m->key_length = s->at - m->key;
    if (rc == 0)
        rc = expect(s, ':');
    space(s);
    m->at = s->at;
    if (rc == 0)
        rc = value(s);
    m->length = s->at - m->at;
    return rc == 0 ? 1 : rc;
}

static bool is_metadata(const scan *s, const member *m)
{
    return m->key_length == sizeof metadata_key - 1 && memcmp(s->text + m->key, metadata_key, sizeof metadata_key - 1) == 0;
}

/* ---- parsing one piece ------------------------------------------------------------------------------------------------ */

static json_t *parse(const scan *s, uint32_t at, uint32_t length, size_t flags, const char *what)
{
    json_error_t error;
    json_t *json = json_loadb(s->text + at, length, flags, &error);
    if (!json) {
        char words[96];
        bad(s, at, "%s is not valid JSON (in the parser's words: %s)", what, shown(error.text, words));
    }
    return json;
}

/* The decoded text goes to *room, which moves on; NULL after td__fail. Never longer than what stands in the file. */
static char *decode(const scan *s, uint32_t at, uint32_t length, const char *what, char **room)
{
    json_t *json = parse(s, at, length, JSON_DECODE_ANY, what);
    char *into = NULL;
    if (json && json_is_string(json)) {
        into = *room;
        size_t n = json_string_length(json);
        memcpy(into, json_string_value(json), n + 1);
        *room += n + 1;
    } else if (json) {
        bad(s, at, "%s is no text, as it must be", what);
    }
    json_decref(json);
    return into;
}

static const struct { const char *text; unsigned size; td_dtype dtype; bool supported; } dtypes[] = {
    { "F64", 8, TD_F64, true }, { "F32", 4, TD_F32, true }, { "F16", 2, TD_F16, true }, { "BF16", 2, TD_BF16, true },
    { "I64", 8, TD_I64, true }, { "I32", 4, TD_I32, true }, { "U8", 1, TD_U8, true },   { "BOOL", 1, TD_BOOL, true },
    { "I8", 1 }, { "I16", 2 }, { "U16", 2 }, { "U32", 4 }, { "U64", 8 }, { "F8_E4M3", 1 }, { "F8_E5M2", 1 },
};

const char *td__st_dtype_text(td_dtype dtype)
{
    for (size_t i = 0; i < TD_COUNT(dtypes); i++)
        if (dtypes[i].supported && dtypes[i].dtype == dtype)
            return dtypes[i].text;
    return "?";
}

static int read_shape(const scan *s, const td__st_entry *e, const char *name, const json_t *json, td_shape *shape)
{
    if (!json_is_array(json) || json_array_size(json) > TD_MAX_DIMS)
        return bad(s, e->at, "tensor \"%s\": shape is %s, expected a list of up to %d sizes", name,
                   json_is_array(json) ? "longer" : "no list", TD_MAX_DIMS);
    *shape = (td_shape){ (int)json_array_size(json), { 0 } };
    int64_t elements = 1;
    for (int i = 0; i < shape->ndim; i++) {
        const json_t *size = json_array_get(json, (size_t)i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return bad(s, e->at, "tensor \"%s\": dimension %d of its shape is no whole number from 0 up", name, i);
        shape->dim[i] = json_integer_value(size);
        if (shape->dim[i] > 0 && (__builtin_mul_overflow(elements, shape->dim[i], &elements) || elements > INT64_MAX / 16)) {
            char text[128];
            return bad(s, e->at, "tensor \"%s\": shape %s has more elements than can be addressed", name, td__shape_text(*shape, text));
        }
    }
    return 0;
}

static int read_info(const scan *s, const td__st_entry *e, const json_t *json, size_t data_size, td__st_info *out)
{
    char name[96], text[128];
    shown(e->name, name);
    const json_t *offsets = json_object_get(json, "data_offsets"), *dtype = json_object_get(json, "dtype");
    if (json_object_size(json) != 3 || !dtype || !offsets || !json_object_get(json, "shape"))
        return bad(s, e->at, "tensor \"%s\": expected an object of dtype, shape and data_offsets, and nothing else", name);
    size_t d = 0;
    while (json_is_string(dtype) && d < TD_COUNT(dtypes) && strcmp(json_string_value(dtype), dtypes[d].text) != 0)
        d++;
    if (!json_is_string(dtype) || d == TD_COUNT(dtypes))
        return bad(s, e->at, "tensor \"%s\": dtype \"%s\" is not known, expected one such as \"F32\"", name,
                   json_is_string(dtype) ? shown(json_string_value(dtype), (char[96]){ 0 }) : "(no text)");
    out->dtype = dtypes[d].dtype;
    out->supported = dtypes[d].supported;
    snprintf(out->dtype_text, sizeof out->dtype_text, "%s", dtypes[d].text);
    int rc = read_shape(s, e, name, json_object_get(json, "shape"), &out->shape);
    if (rc != 0)
        return rc;
    const json_t *b = json_array_get(offsets, 0), *n = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(n) || json_integer_value(b) < 0)
        return bad(s, e->at, "tensor \"%s\": expected data_offsets of two whole numbers from 0 up, its begin and end", name);
    long long begin = json_integer_value(b), end = json_integer_value(n);
    if (end < begin || (unsigned long long)end > data_size)
        return bad(s, e->at, "tensor \"%s\": data_offsets [%lld,%lld] do not lie within the %zu bytes of data", name, begin, end, data_size);
    long long want = td__shape_numel(out->shape) * dtypes[d].size;
    if (end - begin != want)
        return bad(s, e->at, "tensor \"%s\": data_offsets [%lld,%lld] are %lld bytes, but shape %s of %s takes %lld", name, begin, end,
                   end - begin, td__shape_text(out->shape, text), dtypes[d].text, want);
    out->begin = (uint64_t)begin;
    out->end = (uint64_t)end;
    return 0;
}

static int describe(const scan *s, const td__st_entry *e, size_t data_size, td__st_info *out)
{
    json_t *json = parse(s, e->at, e->length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, "the description of a tensor");
    if (!json)
        return TD_ERR_FORMAT;
    int rc = read_info(s, e, json, data_size, out);
    json_decref(json);
    return rc;
}

int td__st_describe(const td__st_index *index, const char *who, const td__map *map, const td__st_entry *e, td__st_info *out)
{
    scan s = { .who = who, .map = map, .text = (const char *)map->data + 8, .n = (uint32_t)(index->data_at - 8) };
    return describe(&s, e, map->size - index->data_at, out);
}

/* ---- the index ---------------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b, void *entries)
{
    const td__st_entry *e = entries;
    int order = strcmp(e[*(const uint32_t *)a].name, e[*(const uint32_t *)b].name);
    return order ? order : *(const uint32_t *)a < *(const uint32_t *)b ? -1 : 1;
}

static int by_place(const void *a, const void *b, void *entries)
{
    const td__st_entry *x = (td__st_entry *)entries + *(const uint32_t *)a, *y = (td__st_entry *)entries + *(const uint32_t *)b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end != y->end ? (x->end < y->end ? -1 : 1) : 0;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const td__st_text *)a)->key, ((const td__st_text *)b)->key);
}

static int check_names(td__st_index *index, const scan *s)
{
    char name[96];
    qsort_r(index->sorted, index->n, sizeof *index->sorted, by_name, index->entry);
    for (size_t i = 1; i < index->n; i++) {
        const td__st_entry *a = &index->entry[index->sorted[i - 1]], *b = &index->entry[index->sorted[i]];
        if (strcmp(a->name, b->name) == 0)
            return bad(s, b->at, "the name \"%s\" is there twice, first at byte %u", shown(a->name, name), 8 + a->at);
    }
    return 0;
}

/* Without holes and overlaps every byte of the file has one meaning, and its length one value. */
static int check_places(td__st_index *index, const scan *s, size_t data_size)
{
    char a[96], b[96];
    qsort_r(index->sorted, index->n, sizeof *index->sorted, by_place, index->entry);
    const td__st_entry *before = NULL;
    unsigned long long end = 0;
    for (size_t i = 0; i < index->n; i++) {
        const td__st_entry *e = &index->entry[index->sorted[i]];
        unsigned long long begin = e->begin;
        if (begin < end)
            return bad(s, e->at, "tensor \"%s\" begins at %llu of the data, where \"%s\" goes on to %llu: they overlap", shown(e->name, a),
                       begin, before ? shown(before->name, b) : "", end);
        if (begin > end)
            return bad(s, e->at, "tensor \"%s\" begins at %llu of the data, but what is before it ends at %llu: a hole", shown(e->name, a),
                       begin, end);
        end = e->end;
        before = e;
    }
    if (end != data_size)
        return bad(s, s->n + end, "the file has %zu bytes of data, but its tensors end after %llu", data_size, end);
    return 0;
}

static int read_metadata(td__st_index *index, const scan *s, const member *whole, char **room)
{
    scan in = *s;
    in.at = whole->at;
    in.n = whole->at + whole->length;
    int rc = expect(&in, '{');
    member m;
    for (size_t i = 0; rc == 0 && i < index->n_metadata; i++) {
        rc = next_member(&in, &m, i == 0, TD__NAME_ROOM);
        if (rc < 0)
            return rc;
        char *key = decode(s, m.key, m.key_length, "a key of the metadata", room);
        char *text = key ? decode(s, m.at, m.length, "a value of the metadata", room) : NULL;
        if (!text)
            return td__pending() ? td__pending() : TD_ERR_FORMAT;
        index->metadata[i] = (td__st_text){ key, text };
        rc = 0;
    }
    return rc;
}

/* How many members, here and in the metadata, and room for their texts. Nothing is allocated before this has passed. */
static int count(scan s, td__st_index *index, size_t *strings)
{
    member m;
    bool metadata = false;
    int rc = expect(&s, '{');
    for (bool first = true; rc == 0; first = false) {
        if ((rc = next_member(&s, &m, first, TD__NAME_ROOM)) <= 0)
            break;
        rc = 0;
        if (!is_metadata(&s, &m)) {
            if (m.length < LEAST || m.length > TD__ENTRY_ROOM)
                return bad(&s, m.at, "the description of a tensor has %u bytes, %d to %d are expected", m.length, LEAST, TD__ENTRY_ROOM);
            index->n++;
            *strings += m.key_length;          /* decoded and ended, a text is shorter than in its quotes                     */
            continue;
        }
        if (metadata)
            return bad(&s, m.key, "\"__metadata__\" is there twice");
        metadata = true;
        scan in = s;
        in.at = m.at;
        in.n = m.at + m.length;
        rc = expect(&in, '{');
        for (bool start = true; rc == 0; start = false) {
            member inner;
            if ((rc = next_member(&in, &inner, start, TD__NAME_ROOM)) <= 0)
                break;
            rc = 0;
            *strings += inner.key_length + inner.length;
            if (++index->n_metadata > TD__TEXTS)
                return bad(&s, m.at, "the metadata has more than %d texts", TD__TEXTS);
        }
    }
    if (rc != 0)
        return rc;
    space(&s);
    char text[32];
    return s.at < s.n ? bad(&s, s.at, "expected only spaces after the header's object, got %s", got(&s, text)) : 0;
}

static int fill(td__st_index *index, scan *s, size_t data_size)
{
    member m;
    char *room = index->strings;
    s->at = 0;
    int rc = expect(s, '{');
    for (size_t i = 0; rc == 0;) {
        int more = next_member(s, &m, s->text[s->at - 1] == '{', TD__NAME_ROOM);
        if (more <= 0)
            return more;
        if (is_metadata(s, &m)) {
            rc = read_metadata(index, s, &m, &room);
            continue;
        }
        td__st_info info;
        td__st_entry *e = &index->entry[i];
        *e = (td__st_entry){ .name = decode(s, m.key, m.key_length, "a tensor's name", &room), .at = m.at, .length = m.length };
        rc = e->name ? describe(s, e, data_size, &info) : TD_ERR_FORMAT;
        if (rc == 0) {
            e->begin = info.begin;
            e->end = info.end;
            index->sorted[i] = (uint32_t)i;
            i++;
        }
    }
    return rc;
}

/* The eight bytes, and the text that they promise. */
static int find_header(scan *s)
{
    const td__map *map = s->map;
    uint64_t length = 0;
    if (map->size < 8)
        return td__fail(TD_ERR_FORMAT, "%s: %s: at byte 0: expected 8 bytes with the header's length, but the file has %zu", s->who, map->path,
                        map->size);
    memcpy(&length, map->data, 8);
    unsigned long long n = le64toh(length);
    if (n > TD__HEADER_ROOM)
        return td__fail(TD_ERR_FORMAT, "%s: %s: at byte 0: the header's length is %llu, at most %d is allowed", s->who, map->path, n,
                        TD__HEADER_ROOM);
    if (n > map->size - 8)
        return td__fail(TD_ERR_FORMAT, "%s: %s: at byte 0: the header's length is %llu, but the file has only %zu bytes after it", s->who,
                        map->path, n, map->size - 8);
    s->text = (const char *)map->data + 8;
    s->n = (uint32_t)n;
    if (n == 0 || s->text[0] != '{') {
        char text[32];
        return bad(s, 0, "expected the header's '{', got %s", got(s, text));
    }
    return 0;
}

int td__st_index_make(td__st_index *index, const char *who, const td__map *map)
{
    *index = (td__st_index){ 0 };
    scan s = { .who = who, .map = map };
    size_t strings = 0;
    int rc = find_header(&s);
    if (rc == 0)
        rc = count(s, index, &strings);
    if (rc != 0)
        return rc;
    index->data_at = 8 + (size_t)s.n;
    index->entry = td__alloc(index->n * sizeof *index->entry);
    index->sorted = td__alloc(index->n * sizeof *index->sorted);
    index->metadata = td__alloc(index->n_metadata * sizeof *index->metadata);
    index->strings = td__alloc(strings);
    size_t data_size = map->size - index->data_at;
    rc = index->entry && index->sorted && index->metadata && index->strings ? fill(index, &s, data_size) : TD_ERR_MEMORY;
    if (rc == 0)
        rc = check_places(index, &s, data_size);
    if (rc == 0)
        rc = check_names(index, &s);
    if (rc == 0 && index->n_metadata > 1)
        qsort(index->metadata, index->n_metadata, sizeof *index->metadata, by_key);
    for (size_t i = 1; rc == 0 && i < index->n_metadata; i++)
        if (strcmp(index->metadata[i - 1].key, index->metadata[i].key) == 0)
            rc = bad(&s, 0, "the metadata has the key \"%s\" twice", shown(index->metadata[i].key, (char[96]){ 0 }));
    if (rc != 0)
        td__st_index_free(index);
    return rc;
}

void td__st_index_free(td__st_index *index)
{
    td__free(index->entry);
    td__free(index->sorted);
    td__free(index->metadata);
    td__free(index->strings);
    *index = (td__st_index){ 0 };
}

const td__st_entry *td__st_find(const td__st_index *index, const char *name)
{
    for (size_t low = 0, high = index->n; low < high;) {
        size_t middle = low + (high - low) / 2;
        const td__st_entry *e = &index->entry[index->sorted[middle]];
        int order = strcmp(name, e->name);
        if (order == 0)
            return e;
        *(order < 0 ? &high : &low) = order < 0 ? middle : middle + 1;
    }
    return NULL;
}
