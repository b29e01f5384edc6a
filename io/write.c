/* io/write.c: td_safetensors_save.
 *
 * The header is made whole, in the order given, and padded with spaces to a multiple of 8; the data follows by element size, the
 * largest first, so that whoever maps the file finds every tensor aligned.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "io_impl.h"

typedef struct { const char *who; char *data; size_t n, room; } text;

static int add(text *t, const char *bytes, size_t n)
{
    if (n > t->room - t->n) {
        size_t room = 2 * t->room + n + 1024;
        char *grown = td__grow(t->data, t->room, room);
        if (!grown)
            return TD_ERR_MEMORY;
        t->data = grown;
        t->room = room;
    }
    memcpy(t->data + t->n, bytes, n);
    t->n += n;
    return 0;
}

/* `string` as JSON writes it. `what` and `place` name it in the sentence. */
static int add_string(text *t, const char *string, size_t most, const char *what, size_t place)
{
    if (!string)
        return td__fail(TD_ERR_ARGUMENT, "%s: %s %zu is NULL", t->who, what, place);
    json_t *json = json_string(string);        /* NULL: not UTF-8, or no memory                                            */
    if (!json)
        return td__fail(TD_ERR_ARGUMENT, "%s: %s %zu is not valid UTF-8", t->who, what, place);
    char *encoded = json_dumps(json, JSON_ENCODE_ANY);
    json_decref(json);
    if (!encoded)
        return td__fail(TD_ERR_MEMORY, "%s: no memory for %s %zu", t->who, what, place);
    size_t n = strlen(encoded);
    int rc = n > most ? td__fail(TD_ERR_ARGUMENT, "%s: %s %zu takes %zu bytes in the header, at most %zu are possible", t->who, what, place, n,
                                 most)
                      : add(t, encoded, n);
    free(encoded);
    return rc;
}

static size_t bytes_of(const td_tensor *x)
{
    return (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype);
}

static int add_tensor(text *t, const td_named *named, size_t i, size_t begin)
{
    int rc = add_string(t, named->name, TD__NAME_ROOM, "the name of tensor", i);
    char piece[320];
    td_shape s = named->tensor->shape;
    int n = snprintf(piece, sizeof piece, ":{\"dtype\":\"%s\",\"shape\":[", td__st_dtype_text(named->tensor->dtype));
    for (int k = 0; k < s.ndim; k++)
        n += snprintf(piece + n, sizeof piece - (size_t)n, k ? ",%lld" : "%lld", (long long)s.dim[k]);
    n += snprintf(piece + n, sizeof piece - (size_t)n, "],\"data_offsets\":[%zu,%zu]}", begin, begin + bytes_of(named->tensor));
    return rc ? rc : add(t, piece, (size_t)n);
}

static int add_metadata(text *t, const td_text_pair *pair, size_t n)
{
    int rc = add(t, "\"__metadata__\":{", strlen("\"__metadata__\":{"));
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = i ? add(t, ",", 1) : 0;
        if (rc == 0)
            rc = add_string(t, pair[i].key, TD__NAME_ROOM, "the key of metadata", i);
        if (rc == 0)
            rc = add(t, ":", 1);
        if (rc == 0)
            rc = add_string(t, pair[i].value, TD__TEXT_ROOM, "the text of metadata", i);
    }
    return rc ? rc : add(t, "}", 1);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Are all n names, `stride` bytes apart, different? */
static int check_unique(const char *who, const void *first, size_t stride, size_t n, const char *what)
{
    const char **name = td__alloc(n * sizeof *name);
    if (!name)
        return TD_ERR_MEMORY;
    for (size_t i = 0; i < n; i++)
        name[i] = *(const char *const *)((const char *)first + i * stride);
    qsort(name, n, sizeof *name, compare);
    int rc = 0;
    for (size_t i = 1; i < n && rc == 0; i++)
        if (strcmp(name[i - 1], name[i]) == 0)
            rc = td__fail(TD_ERR_ARGUMENT, "%s: %s \"%.80s\" is there twice", who, what, name[i]);
    td__free(name);
    return rc;
}

static int check(const char *who, const td_named *tensors, size_t n, const td_text_pair *metadata, size_t n_metadata)
{
    if ((n && !tensors) || (n_metadata && !metadata))
        return td__fail(TD_ERR_ARGUMENT, "%s: the list of %s is NULL", who, n && !tensors ? "tensors" : "metadata");
    if (n_metadata > TD__TEXTS)
        return td__fail(TD_ERR_ARGUMENT, "%s: %zu metadata texts, at most %d are possible", who, n_metadata, TD__TEXTS);
    for (size_t i = 0; i < n; i++) {
        int rc = td__tensor_check(who, tensors[i].tensor);
        if (rc != 0)
            return rc;
        if (!tensors[i].name || strcmp(tensors[i].name, "__metadata__") == 0)
            return td__fail(TD_ERR_ARGUMENT, "%s: the name of tensor %zu is %s", who, i,
                            tensors[i].name ? "\"__metadata__\", which the format keeps for itself" : "NULL");
    }
    for (size_t i = 0; i < n_metadata; i++)
        if (!metadata[i].key)
            return td__fail(TD_ERR_ARGUMENT, "%s: the key of metadata %zu is NULL", who, i);
    int rc = n > 1 ? check_unique(who, &tensors[0].name, sizeof *tensors, n, "the name") : 0;
    return rc == 0 && n_metadata > 1 ? check_unique(who, &metadata[0].key, sizeof *metadata, n_metadata, "the metadata key") : rc;
}

/* The next tensor of this element size, from i on; n when there is none. */
static size_t of_size(const td_named *tensors, size_t n, size_t i, size_t size)
{
    while (i < n && td_dtype_size(tensors[i].tensor->dtype) != size)
        i++;
    return i;
}

static int make_header(text *t, const td_named *tensors, size_t n, const td_text_pair *metadata, size_t n_metadata)
{
    size_t *begin = td__alloc(n * sizeof *begin), end = 0;
    int rc = begin ? add(t, "\0\0\0\0\0\0\0\0{", 9) : TD_ERR_MEMORY;
    if (rc == 0 && n_metadata > 0)
        rc = add_metadata(t, metadata, n_metadata);
    for (size_t size = 8; size > 0 && rc == 0; size /= 2)
        for (size_t i = of_size(tensors, n, 0, size); i < n; i = of_size(tensors, n, i + 1, size)) {
            begin[i] = end;
            end += bytes_of(tensors[i].tensor);
        }
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = i > 0 || n_metadata > 0 ? add(t, ",", 1) : 0;
        if (rc == 0)
            rc = add_tensor(t, &tensors[i], i, begin[i]);
    }
    td__free(begin);
    if (rc == 0)
        rc = add(t, "}", 1);
    while (rc == 0 && t->n % 8 != 0)
        rc = add(t, " ", 1);
    if (rc != 0)
        return rc;
    uint64_t length = t->n - 8;
    memcpy(t->data, &length, 8);               /* header.c demands a little-endian machine                                  */
    return length <= TD__HEADER_ROOM ? 0 : td__fail(TD_ERR_ARGUMENT, "%s: the header would have %llu bytes, at most %d are possible", t->who,
                                                    (unsigned long long)length, TD__HEADER_ROOM);
}

int td__st_save(const char *who, const char *path, td__st_kind kind, const td_named *tensors, size_t n, const td_text_pair *metadata,
                size_t n_metadata)
{
    int rc = td__pending();
    text header = { .who = who };
    if (rc == 0)
        rc = check(who, tensors, n, metadata, n_metadata);
    if (rc == 0)
        rc = make_header(&header, tensors, n, metadata, n_metadata);
    if (rc == 0) {
        td__atomic_file f;
        crypto_generichash_state hash;
        rc = td__atomic_open(&f, who, path);
        if (rc == 0 && kind == TD__SEALED) {
            rc = f.rc = td__seal_begin(who, &hash);
            f.hash = &hash;
        }
        if (rc == 0)
            rc = td__atomic_write(&f, header.data, header.n);
        for (size_t size = 8; size > 0 && rc == 0; size /= 2)
            for (size_t i = of_size(tensors, n, 0, size); i < n && rc == 0; i = of_size(tensors, n, i + 1, size))
                rc = td__atomic_tensor(&f, tensors[i].tensor);
        if (rc == 0 && kind == TD__SEALED)
            td__seal_end(&f);
        rc = td__atomic_close(&f);
    }
    td__free(header.data);
    return rc;
}

int td_safetensors_save(const char *path, const td_named *tensors, size_t n, const td_text_pair *metadata, size_t n_metadata)
{
    TD_ENTER();
    return td__st_save("td_safetensors_save", path, TD__PLAIN, tensors, n, metadata, n_metadata);
}
