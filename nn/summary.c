/* nn/summary.c: the table of a model: one line per module with its tensors' shapes, numbers and bytes; tied tensors count once.
 *
 * Written twice by the same code: first only to learn the widths of the columns, then for good.
 */
#include "nn_impl.h"
#include <stdio.h>
#include <string.h>

enum { COLUMNS = 5, CELL = 512 };
static const char *const title[COLUMNS] = { "name", "kind", "shapes", "parameters", "bytes" };

typedef struct { char *into; size_t size, length; } writer;

TD_PRINTF(2, 3) static void put(writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool room = w->length < w->size;
    int n = vsnprintf(room ? w->into + w->length : NULL, room ? w->size - w->length : 0, format, args);
    va_end(args);
    w->length += n > 0 ? (size_t)n : 0;
}

typedef struct {
    writer *out;                               /* NULL: only measure */
    const td_module *top;
    size_t width[COLUMNS];
    int64_t parameters, frozen, bytes;
} table;

/* 1234567 -> "1,234,567" */
static const char *grouped(int64_t n, char into[static 32])
{
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)n), at = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            into[at++] = ',';
        into[at++] = digits[i];
    }
    into[at] = '\0';
    return into;
}

static void line(table *t, const char *const *cell)
{
    if (!t->out) {
        for (int i = 0; i < COLUMNS; i++)
            if (strlen(cell[i]) > t->width[i])
                t->width[i] = strlen(cell[i]);
        return;
    }
    put(t->out, "%-*s  %-*s  %-*s  %*s  %*s\n", (int)t->width[0], cell[0], (int)t->width[1], cell[1], (int)t->width[2], cell[2],
        (int)t->width[3], cell[3], (int)t->width[4], cell[4]);
}

/* Is e the first place below m, in order, that holds its tensor? `found` is set when the walk has met it. */
static bool first_place(const td_module *m, const td__entry *e, bool *found)
{
    const td__tree *t = td__tree_of(m);
    for (int i = 0; i < t->n && !*found; i++) {
        if (t->entry[i]->child && first_place(t->entry[i]->child, e, found))
            return true;
        if (!*found && t->entry[i]->tensor == e->tensor) {
            *found = true;
            return t->entry[i] == e;
        }
    }
    return false;
}

static void module_line(table *t, const td_module *m, const char *path)
{
    const td__tree *tree = td__tree_of(m);
    char kind[CELL], about[CELL / 2] = "", shapes[CELL] = "", shape[128], number[2][32];
    if (m->type->describe)
        m->type->describe(m, about, sizeof about);
    snprintf(kind, sizeof kind, *about ? "%s (%s)" : "%s", m->type->kind, about);
    int64_t elements = 0, bytes = 0;
    for (int i = 0; i < tree->n; i++) {
        const td__entry *e = tree->entry[i];
        if (e->child)
            continue;
        size_t used = strlen(shapes);
        bool found = false, tied = (e->tie || e->tensor->owner != e) && !first_place(t->top, e, &found);
        snprintf(shapes + used, sizeof shapes - used, "%s%s %s%s", used ? ", " : "", e->name, td__shape_text(e->tensor->shape, shape),
                 tied ? " tied" : "");
        if (tied)
            continue;
        int64_t n = td__shape_numel(e->tensor->shape);
        bytes += n * (int64_t)td_dtype_size(e->tensor->dtype);
        if (e->kind == TD__BUFFER)
            continue;
        elements += n;
        const td__leaf *leaf = td__leaf_of(e->tensor);
        t->frozen += leaf && leaf->requires ? 0 : n;
    }
    t->parameters += elements;
    t->bytes += bytes;
    line(t, (const char *const[]){ path, kind, shapes, grouped(elements, number[0]), grouped(bytes, number[1]) });
}

/* The path relative to the module that is summarised is its path below it: what td_parameter_get takes. */
static void walk(table *t, const td_module *m, const char *path)
{
    module_line(t, m, path);
    const td__tree *tree = td__tree_of(m);
    for (int i = 0; i < tree->n; i++) {
        const td__entry *e = tree->entry[i];
        if (!e->child)
            continue;
        char below[CELL];
        snprintf(below, sizeof below, "%s%s%s", path, *path ? "." : "", e->name);
        walk(t, e->child, below);
    }
}

size_t td_summary_format(const td_module *m, char *into, size_t size)
{
    TD_ENTER();
    if (size > 0)
        into[0] = '\0';
    if (td__module_check("td_summary", m) != 0)
        return 0;
    table t = { .top = m };
    line(&t, title);
    walk(&t, m, "");
    writer out = { into, size, 0 };
    t = (table){ .top = m, .out = &out, .width = { t.width[0], t.width[1], t.width[2], t.width[3], t.width[4] } };
    line(&t, title);
    walk(&t, m, "");
    char number[4][32];
    put(&out, "%s parameters (%s trainable, %s frozen), %s bytes with buffers\n", grouped(t.parameters, number[0]),
        grouped(t.parameters - t.frozen, number[1]), grouped(t.frozen, number[2]), grouped(t.bytes, number[3]));
    return out.length;
}

void td_summary(const td_module *m)
{
    TD_ENTER();
    size_t length = td_summary_format(m, NULL, 0);
    char *text = td__alloc(length + 1);
    if (text) {
        td_summary_format(m, text, length + 1);
        fputs(text, stdout);
        fflush(stdout);
    }
    td__free(text);
}
