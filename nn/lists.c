/* nn/lists.c: what is read off the tree: lists of parameters and buffers, paths, train and eval, conversion.
 *
 * Lists and paths are made when first asked for and kept until the tree changes, so that a training loop may ask at every step.
 */
#include "nn_impl.h"
#include <stdio.h>
#include <string.h>

/* ---- paths ------------------------------------------------------------------------------------------------------- */

const char *td__entry_path(td__entry *e)
{
    if (e->path)
        return e->path;
    const td__tree *t = td__tree_of(e->module);
    const char *above = t->place ? td__entry_path(t->place) : "";
    size_t size = strlen(above) + strlen(e->name) + 2;
    e->path = td__alloc(size);
    if (!e->path)
        return "";
    snprintf(e->path, size, "%s%s%s", above, *above ? "." : "", e->name);
    return e->path;
}

const char *td__module_label(td_module *m)
{
    td__tree *t = td__tree_of(m);
    if (t->label)
        return t->label;
    const char *path = t->place ? td__entry_path(t->place) : NULL, *kind = m->type->kind;
    size_t size = (path ? strlen(path) : 0) + strlen(kind) + 16;
    t->label = td__alloc(size);
    if (!t->label)
        return kind;
    if (path)
        snprintf(t->label, size, "module %s (%s)", path, kind);
    else
        snprintf(t->label, size, "module %s", kind);
    return t->label;
}

const char *td_parameter_name(const td_tensor *parameter)
{
    return parameter && parameter->owner ? td__entry_path(parameter->owner) : "";
}

/* Rooms below know parameters by their leaves alone; their messages ask here for the path. */
__attribute__((constructor)) static void name_leaves(void)
{
    td__leaf_name = td_parameter_name;
}

static td__entry *find(const td_module *m, const char *name, size_t length)
{
    const td__tree *t = td__tree_of(m);
    for (int i = 0; i < t->n; i++)
        if (strlen(t->entry[i]->name) == length && memcmp(t->entry[i]->name, name, length) == 0)
            return t->entry[i];
    return NULL;
}

/* The entry at `path` below m, or NULL. */
static td__entry *find_path(const td_module *m, const char *path)
{
    for (;;) {
        size_t length = strcspn(path, ".");
        td__entry *e = find(m, path, length);
        if (!e || !path[length])
            return e;
        if (!e->child)
            return NULL;
        m = e->child;
        path += length + 1;
    }
}

td_tensor *td_parameter_get(td_module *m, const char *path)
{
    TD_ENTER();
    if (td__module_check("td_parameter_get", m) != 0)
        return td__poison();
    td__entry *e = path ? find_path(m, path) : NULL;
    if (e && !e->child)
        return e->tensor;
    td__fail(TD_ERR_ARGUMENT, "td_parameter_get: module \"%s\" has no parameter or buffer \"%s\"%s", m->type->kind, path ? path : "(NULL)",
             e ? ": that is a module" : "");
    return td__poison();
}

td_module *td_module_get(td_module *m, const char *path)
{
    TD_ENTER();
    if (td__module_check("td_module_get", m) != 0)
        return NULL;
    if (!path || !*path)
        return path ? m : NULL;
    td__entry *e = find_path(m, path);
    return e ? e->child : NULL;
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

void td__tree_changed(td_module *m)
{
    for (; m; m = td__tree_of(m)->parent)
        td__tree_of(m)->listed = false;
}

static size_t count(const td_module *m)
{
    const td__tree *t = td__tree_of(m);
    size_t n = 0;
    for (int i = 0; i < t->n; i++)
        n += t->entry[i]->child ? count(t->entry[i]->child) : 1;
    return n;
}

static bool is_listed(td_tensor *const *list, size_t n, const td_tensor *x)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == x)
            return true;
    return false;
}

static void collect(td__tree *into, const td_module *m)
{
    const td__tree *t = td__tree_of(m);
    for (int i = 0; i < t->n; i++) {
        td__entry *e = t->entry[i];
        if (e->child) {
            collect(into, e->child);
            continue;
        }
        int kind = e->kind == TD__BUFFER;
        bool tied = e->tie || e->tensor->owner != e;
        if (!tied || !is_listed(into->list[kind], into->listed_n[kind], e->tensor))
            into->list[kind][into->listed_n[kind]++] = e->tensor;
    }
}

static td_tensors list_of(const char *who, td_module *m, int kind)
{
    if (td__module_check(who, m) != 0)
        return (td_tensors){ NULL, 0 };
    td__tree *t = td__tree_of(m);
    if (!t->listed) {
        size_t n = count(m);
        for (int k = 0; k < 2; k++) {
            td__free(t->list[k]);
            t->listed_n[k] = 0;
            t->list[k] = td__alloc(n * sizeof *t->list[k]);
        }
        if (!t->list[0] || !t->list[1])
            return (td_tensors){ NULL, 0 };
        collect(t, m);
        t->listed = true;
    }
    return (td_tensors){ t->list[kind], t->listed_n[kind] };
}

td_tensors td_parameters(td_module *m)
{
    TD_ENTER();
    return list_of("td_parameters", m, 0);
}

td_tensors td_buffers(td_module *m)
{
    TD_ENTER();
    return list_of("td_buffers", m, 1);
}

/* ---- states of the whole tree ------------------------------------------------------------------------------------ */

void td_train(td_module *m, bool on)
{
    TD_ENTER();
    if (td__module_check("td_train", m) != 0)
        return;
    td__tree *t = td__tree_of(m);
    t->eval = !on;
    for (int i = 0; i < t->n; i++)
        if (t->entry[i]->child)
            td_train(t->entry[i]->child, on);
}

bool td_is_training(const td_module *m)
{
    TD_ENTER();
    return td__checkpoint_answer(td__module_check("td_is_training", m) == 0 && !td__tree_of(m)->eval);
}

/* The handle stays, its storage is another: nobody else may hold on to the old one. */
static int convert(td_tensor *x, td_dtype dtype)
{
    if (!td__is_float(x->dtype) || x->dtype == dtype)
        return 0;
    td_tensor *to = td__tensor_new(x->shape, dtype, x->storage->device);
    if (to->poisoned)
        return TD_ERR_MEMORY;
    int rc = td__copy(to, x, false);
    if (rc == 0) {
        td_storage *old = x->storage;
        x->storage = to->storage;
        x->storage->version = old->version + 1;    /* a graph that saved the old value must notice                           */
        to->storage = old;
        to->dtype = x->dtype;
        to->offset = x->offset;
        x->dtype = dtype;
        x->offset = 0;
        td__shape_strides(x->shape, x->stride);
        td__storage_label(x->storage, TD_MEMORY_PARAMETERS);
    }
    td__tensor_unref(to);
    return rc;
}

int td_module_to(td_module *m, td_dtype dtype)
{
    TD_ENTER();
    int rc = td__module_check("td_module_to", m);
    if (rc != 0)
        return rc;
    if (!td__is_float(dtype))
        return td__fail(TD_ERR_DTYPE, "td_module_to: dtype is %s, expected f32 or f64", td_dtype_name(dtype));
    td_tensors parameters = td_parameters(m), buffers = td_buffers(m);
    for (size_t i = 0; i < parameters.n; i++) {
        td__leaf *leaf = td__leaf_of(parameters.list[i]);
        if (leaf && (leaf->group || leaf->grad) && parameters.list[i]->dtype != dtype)
            return td__fail(TD_ERR_STATE,
                            "td_module_to: parameter \"%s\" has a gradient, an optimizer or a ddp already; convert before them",
                            td_parameter_name(parameters.list[i]));
    }
    for (size_t i = 0; i < parameters.n && rc == 0; i++)
        rc = convert(parameters.list[i], dtype);
    for (size_t i = 0; i < buffers.n && rc == 0; i++)
        rc = convert(buffers.list[i], dtype);
    return rc;
}
