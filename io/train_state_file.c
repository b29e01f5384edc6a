/* io/train_state_file.c: names, tensors and numbers to and from a training state's file.
 *
 * Small numbers that belong to no parameter are one JSON text in the metadata (at most 1 MiB, because a parsed text takes many times its
 * bytes); what there is of each parameter is a tensor under the parameter's name.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sodium.h>
#include "train_state.h"

enum { TEXT_ROOM = 1 << 20, NAME_ROOM = 4352, VERSION = 1 };
static const char text_key[] = "tandem.train_state";

int td__ts_bad(const td__ts *t, int code, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td__fail(code, "%s: %s: %s", t->who, t->path, text);
}

/* ---- names ---------------------------------------------------------------------------------------------------------------- */

static int by_tensor(const void *a, const void *b)
{
    const td__io_slot *x = *(td__io_slot *const *)a, *y = *(td__io_slot *const *)b;
    uintptr_t p = (uintptr_t)x->tensor, q = (uintptr_t)y->tensor;
    return p != q ? (p > q) - (p < q) : (x > y) - (x < y);
}

int td__ts_begin(td__ts *t, const char *who, const char *path, const td_train_state *state)
{
    *t = (td__ts){ .who = who, .path = path, .state = state };
    int rc = state->model ? td__io_slots_collect(&t->slots, state->model, "") : 0;
    t->by_tensor = rc == 0 ? td__alloc(t->slots.n * sizeof *t->by_tensor) : NULL;
    if (!t->by_tensor)
        return rc ? rc : TD_ERR_MEMORY;
    for (size_t i = 0; i < t->slots.n; i++)
        t->by_tensor[i] = &t->slots.list[i];
    qsort(t->by_tensor, t->slots.n, sizeof *t->by_tensor, by_tensor);
    return 0;
}

void td__ts_end(td__ts *t)
{
    for (size_t i = 0; i < t->n; i++) {
        td__free((char *)t->list[i].name);
        td__tensor_unref(t->list[i].tensor);
    }
    td__free(t->list);
    td__free(t->by_tensor);
    td__io_slots_free(&t->slots);
    td__free(t->used);
    td__ts_gathered_free(t);
    td__st_close(t->file);
    json_decref(t->text);
}

const char *td__ts_name(const td__ts *t, const td_tensor *x, size_t place, char into[static 32])
{
    size_t low = 0, high = t->slots.n;
    while (low < high) {                       /* the first slot of a tied tensor                                          */
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)t->by_tensor[middle]->tensor < (uintptr_t)x)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < t->slots.n && t->by_tensor[low]->tensor == x)
        return t->by_tensor[low]->name;
    snprintf(into, 32, "#%zu", place);
    return into;
}

/* ---- putting ---------------------------------------------------------------------------------------------------------------- */

static int put(td__ts *t, td_tensor *x, const char *format, va_list args)
{
    char name[NAME_ROOM];
    if (vsnprintf(name, sizeof name, format, args) >= (int)sizeof name)
        return td__ts_bad(t, TD_ERR_ARGUMENT, "the name \"%.80s…\" is too long", name);
    if (t->n == t->room) {
        size_t room = t->room ? 2 * t->room : 64;
        td_named *grown = td__grow(t->list, t->room * sizeof *grown, room * sizeof *grown);
        if (!grown)
            return TD_ERR_MEMORY;
        t->list = grown;
        t->room = room;
    }
    char *copy = td__strdup(name);
    if (!copy)
        return TD_ERR_MEMORY;
    td__tensor_ref(x);
    t->list[t->n++] = (td_named){ copy, x };
    return 0;
}

int td__ts_put(td__ts *t, td_tensor *x, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = put(t, x, format, args);
    va_end(args);
    return rc;
}

int td__ts_put_numbers(td__ts *t, const int64_t *value, int64_t n, const char *format, ...)
{
    td_tensor *x = td__tensor_new(TD_SHAPE(n), TD_I64, (td_device){ TD_CPU, 0 });
    if (x->poisoned)
        return TD_ERR_MEMORY;
    memcpy(td__ptr(x), value, (size_t)n * sizeof *value);
    va_list args;
    va_start(args, format);
    int rc = put(t, x, format, args);
    va_end(args);
    td__tensor_unref(x);
    return rc;
}

int td__ts_set(const td__ts *t, json_t *into, const char *key, json_t *value)
{
    if (json_object_set_new(into, key, value) == 0)
        return 0;
    return td__ts_bad(t, TD_ERR_ARGUMENT, "\"%s\" cannot be saved: it is not finite, or there is no memory", key);
}

int td__ts_write(td__ts *t)
{
    int rc = td__ts_set(t, t->text, "version", json_integer(VERSION));
    char *text = rc == 0 ? json_dumps(t->text, JSON_COMPACT) : NULL;
    if (rc == 0 && !text)
        rc = td__fail(TD_ERR_MEMORY, "%s: no memory for the numbers of the state", t->who);
    else if (rc == 0 && strlen(text) > TEXT_ROOM)
        rc = td__ts_bad(t, TD_ERR_ARGUMENT, "the optimizers have so many groups that their options take %zu bytes, at most %d are possible",
                        strlen(text), TEXT_ROOM);
    td_text_pair metadata[] = { { TD__SEAL_KEY, td__seal_blank }, { text_key, text }, { "format", "pt" } };
    if (rc == 0)
        rc = td__st_save(t->who, t->path, TD__SEALED, t->list, t->n, metadata, TD_COUNT(metadata));
    free(text);
    return rc;
}

/* ---- taking ----------------------------------------------------------------------------------------------------------------- */

static int parse(td__ts *t)
{
    const char *text = NULL;
    for (size_t i = 0; i < t->file->index.n_metadata; i++)
        if (strcmp(t->file->index.metadata[i].key, text_key) == 0)
            text = t->file->index.metadata[i].value;
    if (!text || strlen(text) > TEXT_ROOM)
        return td__ts_bad(t, TD_ERR_FORMAT, "its metadata has no \"%s\" of at most %d bytes: it is no training state", text_key, TEXT_ROOM);
    json_error_t error;
    t->text = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(t->text))
        return td__ts_bad(t, TD_ERR_FORMAT, "its numbers are %s", t->text ? "no JSON object" : "not valid JSON");
    int64_t version = 0;
    int rc = td__ts_integer(t, t->text, "the state", "version", 1, &version);
    if (rc == 0 && version != VERSION)
        rc = td__ts_bad(t, TD_ERR_FORMAT, "its version is %lld, expected %d: another Tandem wrote it", (long long)version, VERSION);
    return rc;
}

int td__ts_open(td__ts *t, unsigned char sum[static 32])
{
    char hex[65];
    td__map *map = td__map_open(t->who, t->path);
    int rc = map ? td__seal_check(t->who, map, hex) : td__pending();
    if (rc != 0) {
        td__map_unref(map);
        return rc;
    }
    sodium_hex2bin(sum, 32, hex, 64, NULL, NULL, NULL);
    t->file = td__st_from_map(t->who, map);
    if (!t->file)
        return td__pending();
    t->used = td__calloc(t->file->index.n + 1);
    return t->used ? parse(t) : TD_ERR_MEMORY;
}

/* Marks the entry. NULL after td__fail. */
static const td__st_entry *find(td__ts *t, const char *name)
{
    const td__st_entry *e = td__st_find(&t->file->index, name);
    if (!e) {
        td__ts_bad(t, TD_ERR_ARGUMENT, "\"%.160s\" is missing", name);
        return NULL;
    }
    t->used[e - t->file->index.entry] = true;
    return e;
}

static int copy(td_tensor *into, td_safetensors *file, const td__st_entry *e, const td__st_info *info, const char *who)
{
    if (td_is_contiguous(into))
        return td_copy_in(into, file->map->data + file->index.data_at + info->begin, (size_t)(info->end - info->begin));
    TD_SCOPE();
    td_tensor *x = td__scoped_tensor(td__st_tensor(who, file, e));
    return x->poisoned ? td__pending() : td_assign(into, td_to(x, into->storage->device));
}

/* from: into gets the elements from there on; negative: all */
static int take(td__ts *t, td_tensor *into, int64_t from, void *numbers, td_dtype dtype, td_shape shape, const char *format, va_list args)
{
    char name[NAME_ROOM], a[128], b[128];
    vsnprintf(name, sizeof name, format, args);
    td__st_info info;
    const td__st_entry *e = find(t, name);
    if (!e)
        return td__pending();
    int rc = td__st_describe(&t->file->index, t->who, t->file->map, e, &info);
    if (rc != 0)
        return rc;
    if (!info.supported || info.dtype != dtype)
        return td__ts_bad(t, TD_ERR_DTYPE, "\"%.160s\" is %s, expected %s", name, info.dtype_text, td__st_dtype_text(dtype));
    if (!td__shape_equal(info.shape, shape))
        return td__ts_bad(t, TD_ERR_SHAPE, "\"%.160s\" has shape %s, expected %s", name, td__shape_text(info.shape, a), td__shape_text(shape, b));
    const unsigned char *data = t->file->map->data + t->file->index.data_at + info.begin;
    if (numbers)
        memcpy(numbers, data, (size_t)(info.end - info.begin));
    if (!t->apply && dtype == TD_BOOL)
        rc = td__map_check_bool(t->who, t->file->map, name, t->file->index.data_at + info.begin, (size_t)(info.end - info.begin));
    if (rc == 0 && !t->apply && into && td__tensor_inplace_check)
        rc = td__tensor_inplace_check(into);
    if (rc == 0 && t->apply && into && from >= 0)
        rc = td_copy_in(into, data + (size_t)from * td_dtype_size(dtype), (size_t)td_numel(into) * td_dtype_size(dtype));
    else if (rc == 0 && t->apply && into && info.end > info.begin)
        rc = copy(into, t->file, e, &info, t->who);
    return rc;
}

int td__ts_take(td__ts *t, td_tensor *into, td_dtype dtype, td_shape shape, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = take(t, into, -1, NULL, dtype, shape, format, args);
    va_end(args);
    return rc;
}

int td__ts_take_part(td__ts *t, td_tensor *into, int64_t first, td_dtype dtype, td_shape shape, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = take(t, into, first, NULL, dtype, shape, format, args);
    va_end(args);
    return rc;
}

int td__ts_take_numbers(td__ts *t, int64_t *value, int64_t n, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = take(t, NULL, -1, value, TD_I64, TD_SHAPE(n), format, args);
    va_end(args);
    return rc;
}

int td__ts_nothing_else(const td__ts *t)
{
    const td_train_state *s = t->state;
    const struct { const char *prefix; bool asked; } part[] = {
        { "model/", s->model }, { "optim/", s->n_optims > 0 }, { "ema/", s->ema }, { "ddp/", s->ddp }, { "extra/", s->n_extra > 0 },
    };
    for (size_t i = 0; i < t->file->index.n; i++) {
        const char *name = t->file->index.entry[i].name;
        size_t k = 0;
        while (k < TD_COUNT(part) && strncmp(name, part[k].prefix, strlen(part[k].prefix)) != 0)
            k++;
        if (k == TD_COUNT(part))
            return td__ts_bad(t, TD_ERR_FORMAT, "\"%.160s\" is no part of a training state", name);
        if (part[k].asked && !t->used[i])
            return td__ts_bad(t, TD_ERR_ARGUMENT, "\"%.160s\" is in the file, but not in this program", name);
    }
    return 0;
}

/* ---- the numbers ------------------------------------------------------------------------------------------------------------ */

const json_t *td__ts_object(const td__ts *t, const json_t *from, const char *key)
{
    const json_t *o = json_object_get(from, key);
    if (json_is_object(o))
        return o;
    td__ts_bad(t, TD_ERR_ARGUMENT, "was saved without \"%s\"", key);
    return NULL;
}

int td__ts_integer(const td__ts *t, const json_t *from, const char *in, const char *key, int64_t least, int64_t *out)
{
    const json_t *value = json_object_get(from, key);
    if (!json_is_integer(value) || json_integer_value(value) < least)
        return td__ts_bad(t, TD_ERR_FORMAT, "\"%s\" of %s is no whole number%s", key, in, least == INT64_MIN ? "" : " as it should be");
    *out = json_integer_value(value);
    return 0;
}

int td__ts_number(const td__ts *t, const json_t *from, const char *in, const char *key, double *out)
{
    const json_t *value = json_object_get(from, key);
    if (!json_is_number(value))
        return td__ts_bad(t, TD_ERR_FORMAT, "\"%s\" of %s is no number", key, in);
    *out = json_number_value(value);
    return 0;
}

int td__ts_flag(const td__ts *t, const json_t *from, const char *in, const char *key, bool *out)
{
    const json_t *value = json_object_get(from, key);
    if (!json_is_boolean(value))
        return td__ts_bad(t, TD_ERR_FORMAT, "\"%s\" of %s is neither true nor false", key, in);
    *out = json_is_true(value);
    return 0;
}

int td__ts_same(const td__ts *t, const json_t *from, const char *in, const char *key, int64_t here)
{
    int64_t there = 0;
    int rc = td__ts_integer(t, from, in, key, INT64_MIN, &there);
    if (rc == 0 && there != here)
        rc = td__ts_bad(t, TD_ERR_ARGUMENT, "\"%s\" of %s is %lld in the file, but %lld in this program", key, in, (long long)there,
                        (long long)here);
    return rc;
}
