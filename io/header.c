/* io/header.c: the header of a safetensors file: 8 bytes of length (little-endian), then one JSON object: name -> {"dtype", "shape",
 * "data_offsets"}, and perhaps "__metadata__": text -> text; then the data, without holes or overlaps.
 *
 * scan.c cuts it into members; what is kept is an index that is never larger than the header.
 */
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "scan.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are used where they lie in the file, which is little-endian");

enum { LEAST = sizeof "{'dtype':'U8','shape':[],'data_offsets':[0,0]}" - 1 };
static const char metadata_key[] = "\"__metadata__\"";

/* ---- one tensor's description --------------------------------------------------------------------------------------------- */

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

static int read_shape(const td__scan *s, const td__st_entry *e, const char *name, const json_t *json, td_shape *shape)
{
    if (!json_is_array(json) || json_array_size(json) > TD_MAX_DIMS)
        return td__scan_bad(s, e->at, "tensor \"%s\": shape is %s, expected a list of up to %d sizes", name,
                   json_is_array(json) ? "longer" : "no list", TD_MAX_DIMS);
    *shape = (td_shape){ (int)json_array_size(json), { 0 } };
    int64_t elements = 1;
    for (int i = 0; i < shape->ndim; i++) {
        const json_t *size = json_array_get(json, (size_t)i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return td__scan_bad(s, e->at, "tensor \"%s\": dimension %d of its shape is no whole number from 0 up", name, i);
        shape->dim[i] = json_integer_value(size);
        if (shape->dim[i] > 0 && (__builtin_mul_overflow(elements, shape->dim[i], &elements) || elements > INT64_MAX / 16)) {
            char text[128];
            return td__scan_bad(s, e->at, "tensor \"%s\": shape %s has more elements than can be addressed", name, td__shape_text(*shape, text));
        }
    }
    return 0;
}

static int read_info(const td__scan *s, const td__st_entry *e, const json_t *json, size_t data_size, td__st_info *out)
{
    char name[96], text[128];
    td__scan_shown(e->name, name);
    const json_t *offsets = json_object_get(json, "data_offsets"), *dtype = json_object_get(json, "dtype");
    if (json_object_size(json) != 3 || !dtype || !offsets || !json_object_get(json, "shape"))
        return td__scan_bad(s, e->at, "tensor \"%s\": expected an object of dtype, shape and data_offsets, and nothing else", name);
    size_t d = 0;
    while (json_is_string(dtype) && d < TD_COUNT(dtypes) && strcmp(json_string_value(dtype), dtypes[d].text) != 0)
        d++;
    if (!json_is_string(dtype) || d == TD_COUNT(dtypes))
        return td__scan_bad(s, e->at, "tensor \"%s\": dtype \"%s\" is not known, expected one such as \"F32\"", name,
                   json_is_string(dtype) ? td__scan_shown(json_string_value(dtype), (char[96]){ 0 }) : "(no text)");
    out->dtype = dtypes[d].dtype;
    out->supported = dtypes[d].supported;
    snprintf(out->dtype_text, sizeof out->dtype_text, "%s", dtypes[d].text);
    int rc = read_shape(s, e, name, json_object_get(json, "shape"), &out->shape);
    if (rc != 0)
        return rc;
    const json_t *b = json_array_get(offsets, 0), *n = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(n) || json_integer_value(b) < 0)
        return td__scan_bad(s, e->at, "tensor \"%s\": expected data_offsets of two whole numbers from 0 up, its begin and end", name);
    long long begin = json_integer_value(b), end = json_integer_value(n);
    if (end < begin || (unsigned long long)end > data_size)
        return td__scan_bad(s, e->at, "tensor \"%s\": data_offsets [%lld,%lld] do not lie within the %zu bytes of data", name, begin, end, data_size);
    long long want = td__shape_numel(out->shape) * dtypes[d].size;
    if (end - begin != want)
        return td__scan_bad(s, e->at, "tensor \"%s\": data_offsets [%lld,%lld] are %lld bytes, but shape %s of %s takes %lld", name, begin, end,
                   end - begin, td__shape_text(out->shape, text), dtypes[d].text, want);
    out->begin = (uint64_t)begin;
    out->end = (uint64_t)end;
    return 0;
}

static int describe(const td__scan *s, const td__st_entry *e, size_t data_size, td__st_info *out)
{
    json_t *json = td__scan_parse(s, e->at, e->length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, "the description of a tensor");
    if (!json)
        return TD_ERR_FORMAT;
    int rc = read_info(s, e, json, data_size, out);
    json_decref(json);
    return rc;
}

int td__st_describe(const td__st_index *index, const char *who, const td__map *map, const td__st_entry *e, td__st_info *out)
{
    td__scan s = { .who = who, .whole = "header", .map = map, .base = 8, .text = (const char *)map->data + 8, .n = (uint32_t)(index->data_at - 8) };
    return describe(&s, e, map->size - index->data_at, out);
}

/* ---- the index ---------------------------------------------------------------------------------------------------------- */

static bool is_metadata(const td__scan *s, const td__member *m)
{
    return m->key_length == sizeof metadata_key - 1 && memcmp(s->text + m->key, metadata_key, sizeof metadata_key - 1) == 0;
}

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

static int check_names(td__st_index *index, const td__scan *s)
{
    char name[96];
    qsort_r(index->sorted, index->n, sizeof *index->sorted, by_name, index->entry);
    for (size_t i = 1; i < index->n; i++) {
        const td__st_entry *a = &index->entry[index->sorted[i - 1]], *b = &index->entry[index->sorted[i]];
        if (strcmp(a->name, b->name) == 0)
            return td__scan_bad(s, b->at, "the name \"%s\" is there twice, first at byte %u", td__scan_shown(a->name, name), 8 + a->at);
    }
    return 0;
}

/* Without holes and overlaps every byte of the file has one meaning, and its length one value. */
static int check_places(td__st_index *index, const td__scan *s, size_t data_size)
{
    char a[96], b[96];
    qsort_r(index->sorted, index->n, sizeof *index->sorted, by_place, index->entry);
    const td__st_entry *before = NULL;
    unsigned long long end = 0;
    for (size_t i = 0; i < index->n; i++) {
        const td__st_entry *e = &index->entry[index->sorted[i]];
        unsigned long long begin = e->begin;
        if (begin < end)
            return td__scan_bad(s, e->at, "tensor \"%s\" begins at %llu of the data, where \"%s\" goes on to %llu: they overlap", td__scan_shown(e->name, a),
                       begin, before ? td__scan_shown(before->name, b) : "", end);
        if (begin > end)
            return td__scan_bad(s, e->at, "tensor \"%s\" begins at %llu of the data, but what is before it ends at %llu: a hole", td__scan_shown(e->name, a),
                       begin, end);
        end = e->end;
        before = e;
    }
    if (end != data_size)
        return td__scan_bad(s, s->n + end, "the file has %zu bytes of data, but its tensors end after %llu", data_size, end);
    return 0;
}

static int read_metadata(td__st_index *index, const td__scan *s, const td__member *whole, char **room)
{
    td__scan in = *s;
    in.at = whole->at;
    in.n = whole->at + whole->length;
    int rc = td__scan_expect(&in, '{');
    td__member m;
    for (size_t i = 0; rc == 0 && i < index->n_metadata; i++) {
        rc = td__scan_member(&in, &m, i == 0, TD__NAME_ROOM);
        if (rc < 0)
            return rc;
        char *key = td__scan_decode(s, m.key, m.key_length, "a key of the metadata", room);
        char *text = key ? td__scan_decode(s, m.at, m.length, "a value of the metadata", room) : NULL;
        if (!text)
            return td__pending() ? td__pending() : TD_ERR_FORMAT;
        index->metadata[i] = (td__st_text){ key, text };
        rc = 0;
    }
    return rc;
}

/* How many members, here and in the metadata, and room for their texts. Nothing is allocated before this has passed. */
static int count(td__scan s, td__st_index *index, size_t *strings)
{
    td__member m;
    bool metadata = false;
    int rc = td__scan_expect(&s, '{');
    for (bool first = true; rc == 0; first = false) {
        if ((rc = td__scan_member(&s, &m, first, TD__NAME_ROOM)) <= 0)
            break;
        rc = 0;
        if (!is_metadata(&s, &m)) {
            if (m.length < LEAST || m.length > TD__ENTRY_ROOM)
                return td__scan_bad(&s, m.at, "the description of a tensor has %u bytes, %d to %d are expected", m.length, LEAST, TD__ENTRY_ROOM);
            index->n++;
            *strings += m.key_length;          /* decoded and ended, a text is shorter than in its quotes                     */
            continue;
        }
        if (metadata)
            return td__scan_bad(&s, m.key, "\"__metadata__\" is there twice");
        metadata = true;
        td__scan in = s;
        in.at = m.at;
        in.n = m.at + m.length;
        rc = td__scan_expect(&in, '{');
        for (bool start = true; rc == 0; start = false) {
            td__member inner;
            if ((rc = td__scan_member(&in, &inner, start, TD__NAME_ROOM)) <= 0)
                break;
            rc = 0;
            *strings += inner.key_length + inner.length;
            if (++index->n_metadata > TD__TEXTS)
                return td__scan_bad(&s, m.at, "the metadata has more than %d texts", TD__TEXTS);
        }
    }
    if (rc != 0)
        return rc;
    td__scan_space(&s);
    char text[32];
    return s.at < s.n ? td__scan_bad(&s, s.at, "expected only spaces after the header's object, got %s", td__scan_got(&s, text)) : 0;
}

static int fill(td__st_index *index, td__scan *s, size_t data_size)
{
    td__member m;
    char *room = index->strings;
    s->at = 0;
    int rc = td__scan_expect(s, '{');
    for (size_t i = 0; rc == 0;) {
        int more = td__scan_member(s, &m, s->text[s->at - 1] == '{', TD__NAME_ROOM);
        if (more <= 0)
            return more;
        if (is_metadata(s, &m)) {
            rc = read_metadata(index, s, &m, &room);
            continue;
        }
        td__st_info info;
        td__st_entry *e = &index->entry[i];
        *e = (td__st_entry){ .name = td__scan_decode(s, m.key, m.key_length, "a tensor's name", &room), .at = m.at, .length = m.length };
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
static int find_header(td__scan *s)
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
        return td__scan_bad(s, 0, "expected the header's '{', got %s", td__scan_got(s, text));
    }
    return 0;
}

int td__st_index_make(td__st_index *index, const char *who, const td__map *map)
{
    *index = (td__st_index){ 0 };
    td__scan s = { .who = who, .whole = "header", .map = map, .base = 8 };
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
            rc = td__scan_bad(&s, 0, "the metadata has the key \"%s\" twice", td__scan_shown(index->metadata[i].key, (char[96]){ 0 }));
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
