/* nn/module.c: the tree: making modules, naming what is in them, adopting, freeing.
 *
 * A module owns one reference to each of its parameters and buffers, and its children whole. A module without parent is a root;
 * roots are listed, so that td_finish frees what the user left. Where adopting fails nothing is taken: the child stays a root, the
 * tensor stays in its scope. The poisoned module is one static record as large as any user's struct may be, so that a
 * constructor that goes on filling its struct after an error writes into memory that is ours.
 */
#include "nn_impl.h"
#include <pthread.h>
#include <string.h>

static td_tensor *poison_forward(td_module *m, td_tensor *x)
{
    return td__poison();
}

static const td_module_type poison_type = { .kind = "poisoned", .size = TD__MODULE_ROOM, .forward = poison_forward };
static union {
    td_module module;
    max_align_t align;
    unsigned char room[TD__MODULE_ROOM];
} poison = { .module = { .type = &poison_type } };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_module *roots;

td_module *td__module_poison(void)
{
    poison.module.type = &poison_type;         /* a constructor may have written over what stands behind it, not these two */
    poison.module.tree = NULL;
    return &poison.module;
}

int td__module_check(const char *who, const td_module *m)
{
    if (!m)
        return td__fail(TD_ERR_ARGUMENT, "%s: the module is NULL", who);
    if (m == &poison.module)
        return td__pending() ? td__pending() : TD_ERR_ARGUMENT;
    return 0;
}

static void enlist(td_module *m)
{
    td__tree *t = td__tree_of(m);
    pthread_mutex_lock(&lock);
    t->prev = NULL;
    t->next = roots;
    if (roots)
        td__tree_of(roots)->prev = m;
    roots = m;
    pthread_mutex_unlock(&lock);
}

static void delist(td_module *m)
{
    td__tree *t = td__tree_of(m);
    pthread_mutex_lock(&lock);
    *(t->prev ? &td__tree_of(t->prev)->next : &roots) = t->next;
    if (t->next)
        td__tree_of(t->next)->prev = t->prev;
    t->next = t->prev = NULL;
    pthread_mutex_unlock(&lock);
}

/* ---- making ------------------------------------------------------------------------------------------------------ */

td_module *td_module_new(const td_module_type *type)
{
    TD_ENTER();
    if (!type || !type->kind || !*type->kind) {
        td__fail(TD_ERR_ARGUMENT, "td_module_new: the type %s", type ? "has no kind, expected a name such as \"block\"" : "is NULL");
        return td__module_poison();
    }
    if (type->size < sizeof(td_module) || type->size > TD__MODULE_ROOM) {
        td__fail(TD_ERR_ARGUMENT,
                 "td_module_new: type \"%s\" has size %zu, expected that of a struct whose first member is a td_module, %zu to %d",
                 type->kind, type->size, sizeof(td_module), TD__MODULE_ROOM);
        return td__module_poison();
    }
    td_module *m = td__calloc(type->size);
    td__tree *t = m ? td__calloc(sizeof *t) : NULL;
    if (!t) {
        td__free(m);
        return td__module_poison();
    }
    m->type = type;
    m->tree = t;
    enlist(m);
    return m;
}

static int check_name(const char *who, const td_module *m, const char *name)
{
    const char *kind = m->type->kind;
    if (!name || !*name)
        return td__fail(TD_ERR_ARGUMENT, "%s: the name in module \"%s\" is %s, expected letters, digits and '_'", who, kind,
                        name ? "empty" : "NULL");
    for (const char *c = name; *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '_'))
            return td__fail(TD_ERR_ARGUMENT,
                            "%s: the name \"%s\" in module \"%s\" has the character '%c', expected letters, digits and '_'", who,
                            name, kind, *c);
    const td__tree *t = td__tree_of(m);
    for (int i = 0; i < t->n; i++)
        if (strcmp(t->entry[i]->name, name) == 0)
            return td__fail(TD_ERR_ARGUMENT, "%s: module \"%s\" has a %s named \"%s\" already", who, kind,
                            (const char *[]){ "parameter", "buffer", "child" }[t->entry[i]->kind], name);
    return 0;
}

static td__entry *add_entry(td_module *m, const char *name, td__entry_kind kind)
{
    td__tree *t = td__tree_of(m);
    if (t->n == t->room) {
        int room = t->room ? 2 * t->room : 4;
        td__entry **grown = td__grow(t->entry, (size_t)t->room * sizeof *grown, (size_t)room * sizeof *grown);
        if (!grown)
            return NULL;
        t->entry = grown;
        t->room = room;
    }
    td__entry *e = td__calloc(sizeof *e);
    char *copy = e ? td__strdup(name) : NULL;
    if (!copy) {
        td__free(e);
        return NULL;
    }
    *e = (td__entry){ .kind = kind, .name = copy, .module = m };
    t->entry[t->n++] = e;
    td__tree_changed(m);
    return e;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* A parameter's storage will be moved into a flat, so it must be its own: views and shared storages are copied. */
static td_tensor *own_storage(td_tensor *value)
{
    const td_storage *s = value->storage;
    if (td_is_contiguous(value) && value->offset == 0 && !s->base && atomic_load(&s->refs) == 1 &&
        s->bytes == (size_t)td__shape_numel(value->shape) * td_dtype_size(value->dtype))
        return value;
    td_tensor *copy = td__tensor_new(value->shape, value->dtype, value->storage->device);
    if (!copy->poisoned && td__copy(copy, value, false) != 0) {
        td__tensor_unref(copy);
        return td__poison();
    }
    return td__scoped_tensor(copy);
}

/* The module's reference: the scope's or td_keep's own where the value had no owner yet, else one more. */
static void take(td__entry *e, td_tensor *value)
{
    td__entry *owner = value->owner;
    e->tensor = value;
    if (owner) {
        td__tensor_ref(value);
        e->tie = owner->tie;
        owner->tie = e;
        return;
    }
    value->owner = e;
    if (td__scope_remove(&value->scoped))
        return;
    if (value->kept > 0)
        value->kept--;
    else
        td__tensor_ref(value);
}

static td_tensor *add_tensor(const char *who, td_module *m, const char *name, td_tensor *value, td__entry_kind kind)
{
    if (td__module_check(who, m) != 0 || check_name(who, m, name) != 0 || td__tensor_check(who, value) != 0)
        return td__poison();
    char shape[128];
    td__entry *owner = value->owner;
    if (owner && owner->kind != kind) {
        td__fail(TD_ERR_ARGUMENT, "%s: \"%s\" in module \"%s\": the tensor %s is a %s already (\"%s\")", who, name, m->type->kind,
                 td__shape_text(value->shape, shape), kind == TD__PARAMETER ? "buffer" : "parameter", td__entry_path(owner));
        return td__poison();
    }
    if (!owner && value->graph && !td__leaf_of(value)) {
        td__fail(TD_ERR_ARGUMENT,
                 "%s: \"%s\" in module \"%s\": the tensor %s is the result of an operation with gradients; td_detach it first", who,
                 name, m->type->kind, td__shape_text(value->shape, shape));
        return td__poison();
    }
    if (!owner && kind == TD__PARAMETER && !td__is_float(value->dtype)) {
        td__fail(TD_ERR_DTYPE, "%s: \"%s\" in module \"%s\": the tensor %s is %s, expected f32 or f64", who, name, m->type->kind,
                 td__shape_text(value->shape, shape), td_dtype_name(value->dtype));
        return td__poison();
    }
    if (!owner && kind == TD__BUFFER && td_needs_grad(value)) {
        td__fail(TD_ERR_ARGUMENT,
                 "%s: \"%s\" in module \"%s\": the tensor %s needs gradients, a buffer has none; use td_module_parameter", who,
                 name, m->type->kind, td__shape_text(value->shape, shape));
        return td__poison();
    }
    if (!owner && !td__leaf_of(value))
        value = own_storage(value);
    if (!owner && kind == TD__PARAMETER && !value->poisoned)
        td_requires_grad((td_tensors){ &value, 1 }, true);
    if (value->poisoned || td__pending())
        return td__poison();
    td__entry *e = add_entry(m, name, kind);
    if (!e)
        return td__poison();
    take(e, value);
    td__storage_label(value->storage, TD_MEMORY_PARAMETERS);
    return value;
}

td_tensor *td_module_parameter(td_module *m, const char *name, td_tensor *value)
{
    TD_ENTER();
    return add_tensor("td_module_parameter", m, name, value, TD__PARAMETER);
}

td_tensor *td_module_buffer(td_module *m, const char *name, td_tensor *value)
{
    TD_ENTER();
    return add_tensor("td_module_buffer", m, name, value, TD__BUFFER);
}

/* ---- children ---------------------------------------------------------------------------------------------------- */

static void forget_paths(td_module *m)
{
    td__tree *t = td__tree_of(m);
    td__free(t->label);
    t->label = NULL;
    for (int i = 0; i < t->n; i++) {
        td__free(t->entry[i]->path);
        t->entry[i]->path = NULL;
        if (t->entry[i]->child)
            forget_paths(t->entry[i]->child);
    }
}

td_module *td_module_child(td_module *m, const char *name, td_module *child)
{
    TD_ENTER();
    const char *who = "td_module_child";
    if (td__module_check(who, m) != 0 || check_name(who, m, name) != 0)
        return td__module_poison();
    if (!child) {
        td__fail(TD_ERR_ARGUMENT, "%s: the child \"%s\" of module \"%s\" is NULL", who, name, m->type->kind);
        return td__module_poison();
    }
    if (td__module_check(who, child) != 0)
        return td__module_poison();
    td__tree *t = td__tree_of(child);
    if (t->parent) {
        td__fail(TD_ERR_ARGUMENT, "%s: \"%s\" for module \"%s\" has a parent already: it is \"%s\" of module \"%s\"", who, name,
                 m->type->kind, t->place->name, t->parent->type->kind);
        return td__module_poison();
    }
    for (const td_module *above = m; above; above = td__tree_of(above)->parent)
        if (above == child) {
            td__fail(TD_ERR_ARGUMENT, "%s: \"%s\" would make module \"%s\" its own descendant", who, name, child->type->kind);
            return td__module_poison();
        }
    td__entry *e = add_entry(m, name, TD__CHILD);
    if (!e)
        return td__module_poison();
    e->child = child;
    delist(child);
    t->parent = m;
    t->place = e;
    forget_paths(child);
    return child;
}

/* ---- freeing ----------------------------------------------------------------------------------------------------- */

static void drop_tensor(td__entry *e)
{
    td_tensor *x = e->tensor;
    if (x->owner == e) {
        x->owner = e->tie;
    } else {
        td__entry *before = x->owner;
        while (before->tie != e)
            before = before->tie;
        before->tie = e->tie;
    }
    td__tensor_unref(x);
}

static void destroy(td_module *m)
{
    td__tree *t = td__tree_of(m);
    if (m->type->destroy)
        m->type->destroy(m);
    for (int i = 0; i < t->n; i++) {
        td__entry *e = t->entry[i];
        if (e->child)
            destroy(e->child);
        else
            drop_tensor(e);
        td__free(e->name);
        td__free(e->path);
        td__free(e);
    }
    td__free(t->entry);
    td__free(t->label);
    td__free(t->list[0]);
    td__free(t->list[1]);
    td__free(t);
    td__free(m);
}

void td_module_free(td_module *m)
{
    TD_ENTER();
    if (!m || m == &poison.module)
        return;
    td__tree *t = td__tree_of(m);
    if (t->parent) {
        td__fail(TD_ERR_STATE, "td_module_free: module \"%s\" is \"%s\" of module \"%s\", which frees it with itself",
                 m->type->kind, t->place->name, t->parent->type->kind);
        return;
    }
    delist(m);
    destroy(m);
}

void td__nn_free_all(void)
{
    while (roots)
        td_module_free(roots);
    td__init_restart();
}
