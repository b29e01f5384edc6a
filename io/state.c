/* io/state.c: td_save and td_load: a module's parameters and buffers by PyTorch's state_dict names.
 *
 * A load first finds, describes and compares everything, and opens every tensor it will copy from; only when all fits is anything written.
 * So an error leaves the module as it was.
 */
#include <stdio.h>
#include <string.h>
#include "io_impl.h"

/* ---- the names of a module ------------------------------------------------------------------------------------------------ */

static char *join(const char *prefix, const char *name)
{
    size_t size = strlen(prefix) + strlen(name) + 2;
    char *path = td__alloc(size);
    if (path)
        snprintf(path, size, "%s%s%s", prefix, *prefix ? "." : "", name);
    return path;
}

static int add_slot(td__io_slots *s, char *name, td_tensor *tensor)
{
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 32;
        td__io_slot *grown = td__grow(s->list, s->room * sizeof *grown, room * sizeof *grown);
        if (!grown) {
            td__free(name);
            return TD_ERR_MEMORY;
        }
        s->list = grown;
        s->room = room;
    }
    s->list[s->n++] = (td__io_slot){ .name = name, .tensor = tensor };
    return 0;
}

/* In state_dict's order: a module's own parameters, its own buffers, then its children. */
int td__io_slots_collect(td__io_slots *s, const td_module *m, const char *prefix)
{
    const td__tree *t = td__tree_of(m);
    int rc = 0;
    for (td__entry_kind kind = TD__PARAMETER; kind <= TD__CHILD; kind++)
        for (int i = 0; i < t->n && rc == 0; i++) {
            const td__entry *e = t->entry[i];
            if (e->kind != kind)
                continue;
            char *path = join(prefix, e->name);
            if (!path)
                return TD_ERR_MEMORY;
            if (kind != TD__CHILD) {
                rc = add_slot(s, path, e->tensor);
            } else {
                rc = td__io_slots_collect(s, e->child, path);
                td__free(path);
            }
        }
    return rc;
}

void td__io_slots_free(td__io_slots *s)
{
    for (size_t i = 0; i < s->n; i++)
        td__free(s->list[i].name);
    td__free(s->list);
}

int td_save(td_module *m, const char *path)
{
    TD_ENTER();
    return td__save("td_save", m, path);
}

int td__save(const char *who, td_module *m, const char *path)
{
    int rc = td__module_check(who, m);
    if (rc != 0)
        return rc;
    td__io_slots s = { 0 };
    rc = td__io_slots_collect(&s, m, "");
    td_named *named = rc == 0 ? td__alloc(s.n * sizeof *named) : NULL;
    for (size_t i = 0; named && i < s.n; i++)
        named[i] = (td_named){ s.list[i].name, s.list[i].tensor };
    /* other programs ask for this text before they read a file (Hugging Face's transformers: "pt") */
    if (rc == 0)
        rc = named ? td__st_save(who, path, TD__PLAIN, named, s.n, &(td_text_pair){ "format", "pt" }, 1) : TD_ERR_MEMORY;
    td__free(named);
    td__io_slots_free(&s);
    return rc;
}

/* ---- comparing a file with a module ------------------------------------------------------------------------------------------ */

/* What does not fit, as parts of one sentence: three names of each kind, and how many more. */
enum { MISSING, UNEXPECTED, DIFFERENT, KINDS, SHOWN = 3 };
typedef struct { char part[KINDS][768]; int n[KINDS]; } troubles;

static TD_PRINTF(3, 4) void note(troubles *t, int kind, const char *format, ...)
{
    char *part = t->part[kind];
    size_t used = strlen(part);
    if (t->n[kind]++ >= SHOWN)
        return;
    if (used > 0)
        used += (size_t)snprintf(part + used, sizeof t->part[kind] - used, kind == DIFFERENT ? "; " : ", ");
    va_list args;
    va_start(args, format);
    vsnprintf(part + used, sizeof t->part[kind] - used, format, args);
    va_end(args);
}

static int complain(const troubles *t, const char *path, const td_module *m)
{
    char text[KINDS * 800] = "";
    static const char *const title[] = { "missing ", "unexpected ", "" };
    size_t used = 0;
    for (int k = 0; k < KINDS; k++) {
        if (t->n[k] == 0)
            continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s%s", used ? "; " : "", title[k], t->part[k]);
        if (t->n[k] > SHOWN)
            used += (size_t)snprintf(text + used, sizeof text - used, " and %d more", t->n[k] - SHOWN);
    }
    if (used == 0)
        return 0;
    return td__fail(t->n[MISSING] || t->n[UNEXPECTED] ? TD_ERR_ARGUMENT : TD_ERR_SHAPE, "td_load: %s does not fit module \"%s\": %s", path,
                    m->type->kind, text);
}

/* The first slot of the same tensor before i, or i itself. */
size_t td__io_slots_first(const td__io_slots *s, size_t i)
{
    const td__entry *owner = s->list[i].tensor->owner;
    for (size_t k = 0; owner && owner->tie && k < i; k++)
        if (s->list[k].tensor == s->list[i].tensor)
            return k;
    return i;
}

static const unsigned char *data_of(const td__io_slot *s, const td__st_info *info)
{
    const td_safetensors *file = s->shard->file;
    return file->map->data + file->index.data_at + info->begin;
}

static int describe(const td__io_slot *s, td__st_info *info)
{
    const td_safetensors *file = s->shard->file;
    return td__st_describe(&file->index, "td_load", file->map, s->entry, info);
}

/* Slot i has an entry: does it fit its tensor, and say the same as the tensor's other names? */
static int compare(const td__io_slots *s, size_t i, troubles *t)
{
    char a[128], b[128];
    td__st_info info, first;
    const td__io_slot *here = &s->list[i], *other = &s->list[td__io_slots_first(s, i)];
    const td_tensor *x = here->tensor;
    int rc = describe(here, &info);
    if (rc != 0)
        return rc;
    if (!info.supported || !td__shape_equal(info.shape, x->shape) || (info.dtype != x->dtype && !(td__is_real(info.dtype) && td__is_real(x->dtype))))
        note(t, DIFFERENT, "\"%.80s\" is %s %s, expected %s %s", here->name, info.dtype_text, td__shape_text(info.shape, a),
             td__st_dtype_text(x->dtype), td__shape_text(x->shape, b));
    if (other == here || !other->entry || other->entry == here->entry)
        return 0;
    rc = describe(other, &first);
    if (rc == 0 && (first.dtype != info.dtype || first.supported != info.supported || !td__shape_equal(first.shape, info.shape) ||
                    memcmp(data_of(other, &first), data_of(here, &info), (size_t)(info.end - info.begin)) != 0))
        note(t, DIFFERENT, "\"%.80s\" and \"%.80s\" are one tensor in the module, but two in the file", other->name, here->name);
    return rc;
}

static bool is_passed_over(const char *name)
{
    static const char last[] = "num_batches_tracked";
    size_t n = strlen(name), k = sizeof last - 1;
    return n >= k && strcmp(name + n - k, last) == 0 && (n == k || name[n - k - 1] == '.');
}

static void note_unexpected(const td__parts *from, const bool *used, troubles *t)
{
    for (size_t k = 0; k < from->n; k++) {
        const td__st_index *index = &from->shard[k].file->index;
        for (size_t i = 0; i < index->n; i++)
            if (!used[from->shard[k].base + i] && !is_passed_over(index->entry[i].name))
                note(t, UNEXPECTED, "\"%.80s\"", index->entry[i].name);
    }
}

static int match(td__io_slots *s, const td__parts *from, bool partial, troubles *t)
{
    bool *used = td__calloc(from->total + 1);
    if (!used)
        return TD_ERR_MEMORY;
    int rc = 0;
    for (size_t i = 0; i < s->n; i++) {
        td__io_slot *one = &s->list[i];
        one->entry = td__parts_find(from, one->name, &one->shard);
        if (one->entry)
            used[one->shard->base + (size_t)(one->entry - one->shard->file->index.entry)] = true;
    }
    /* a tensor that has any of its names is not missing: its first slot takes the entry of the one that is there */
    for (size_t i = 0; i < s->n; i++) {
        td__io_slot *first = &s->list[td__io_slots_first(s, i)];
        if (!first->entry) {
            first->entry = s->list[i].entry;
            first->shard = s->list[i].shard;
        }
    }
    for (size_t i = 0; i < s->n && rc == 0; i++) {
        if (s->list[i].entry)
            rc = compare(s, i, t);
        else if (!partial && td__io_slots_first(s, i) == i)
            note(t, MISSING, "\"%.80s\"", s->list[i].name);
    }
    if (!partial)
        note_unexpected(from, used, t);
    td__free(used);
    return rc;
}

/* All sources first: what may still fail, fails before the first write. */
static int copy_all(const td__io_slots *s)
{
    TD_SCOPE();
    td_tensor **from = td__calloc((s->n + 1) * sizeof *from);
    int rc = from ? 0 : TD_ERR_MEMORY;
    for (size_t i = 0; i < s->n && rc == 0; i++) {
        const td__io_slot *one = &s->list[i];
        if (!one->entry || td__io_slots_first(s, i) != i)
            continue;
        td_tensor *x = td__scoped_tensor(td__st_tensor("td_load", one->shard->file, one->entry));
        from[i] = x->poisoned ? x : td_to(x, one->tensor->storage->device);
        rc = from[i]->poisoned ? td__pending() : td__tensor_inplace_check ? td__tensor_inplace_check(one->tensor) : 0;
    }
    for (size_t i = 0; i < s->n && rc == 0; i++)
        if (from[i])
            rc = td_assign(s->list[i].tensor, from[i]);
    td__free(from);
    return rc;
}

int td_load(td_module *m, const char *path, const td_load_opts *opts)
{
    TD_ENTER();
    int rc = td__module_check("td_load", m);
    if (rc == 0)
        rc = td__pending();
    if (rc != 0)
        return rc;
    td__parts from;
    rc = td__parts_open(&from, "td_load", path);
    if (rc != 0)
        return rc;
    td__io_slots s = { 0 };
    troubles t = { 0 };
    rc = td__io_slots_collect(&s, m, "");
    if (rc == 0)
        rc = match(&s, &from, opts && opts->partial, &t);
    if (rc == 0)
        rc = complain(&t, path, m);
    if (rc == 0)
        rc = copy_all(&s);
    td__io_slots_free(&s);
    td__parts_close(&from);
    return rc;
}
