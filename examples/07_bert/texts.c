/* examples/07_bert/texts.c: reads a file of labelled texts and makes rows of token ids of it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "texts.h"

typedef struct { size_t at, length; int64_t label; } row;
struct texts { char *text; size_t length, room; row *rows; int64_t n, n_room; char **label; int64_t classes; };

static void *must(void *memory)
{
    if (!memory)
        abort();
    return memory;
}

/* ---- reading -------------------------------------------------------------------------------------------------------------- */

static int64_t label_of(const texts *t, const char *name)
{
    for (int64_t i = 0; i < t->classes; i++)
        if (strcmp(t->label[i], name) == 0)
            return i;
    return -1;
}

static int64_t add_label(texts *t, const char *name)
{
    t->label = must(realloc(t->label, (size_t)(t->classes + 1) * sizeof *t->label));
    t->label[t->classes] = must(strdup(name));
    return t->classes++;
}

static void add_row(texts *t, const char *text, size_t length, int64_t label)
{
    if (t->length + length + 1 > t->room) {
        t->room = 2 * (t->room + length + 1);
        t->text = must(realloc(t->text, t->room));
    }
    if (t->n == t->n_room) {
        t->n_room = t->n_room ? 2 * t->n_room : 1024;
        t->rows = must(realloc(t->rows, (size_t)t->n_room * sizeof *t->rows));
    }
    memcpy(t->text + t->length, text, length);
    t->text[t->length + length] = '\n';
    t->rows[t->n++] = (row){ t->length, length, label };
    t->length += length + 1;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Labels were numbered as they came: number them by name. */
static void order_labels(texts *t)
{
    char **came = must(malloc((size_t)(t->classes + 1) * sizeof *came));
    int64_t *number = must(malloc((size_t)(t->classes + 1) * sizeof *number));
    memcpy(came, t->label, (size_t)t->classes * sizeof *came);
    qsort(t->label, (size_t)t->classes, sizeof *t->label, by_name);
    for (int64_t i = 0; i < t->classes; i++)
        number[i] = label_of(t, came[i]);
    for (int64_t i = 0; i < t->n; i++)
        t->rows[i].label = number[t->rows[i].label];
    free(came);
    free(number);
}

static bool read_line(texts *t, char *line, size_t n, const texts *labels, const char *path, char *why, size_t size)
{
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
        line[--n] = 0;
    char *tab = strchr(line, '\t');
    if (!tab || tab == line)
        return snprintf(why, size, "%s: line %lld is no label, tab and text", path, (long long)t->n + 1), false;
    *tab = 0;
    int64_t label = label_of(t, line);
    if (label < 0 && labels)
        return snprintf(why, size, "%s: line %lld has the label \"%.40s\", which the training texts lack", path, (long long)t->n + 1, line), false;
    if (label < 0)
        label = add_label(t, line);
    add_row(t, tab + 1, n - (size_t)(tab + 1 - line), label);
    return true;
}

texts *texts_read(const char *path, const texts *labels, char *why, size_t size)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return snprintf(why, size, "%s: %s", path, strerror(errno)), NULL;
    texts *t = must(calloc(1, sizeof *t));
    for (int64_t i = 0; labels && i < labels->classes; i++)
        add_label(t, labels->label[i]);
    char *line = NULL;
    size_t room = 0;
    bool good = true;
    for (ssize_t n; good && (n = getline(&line, &room, file)) >= 0;)
        good = read_line(t, line, (size_t)n, labels, path, why, size);
    if (good && (ferror(file) || t->n == 0))
        good = (snprintf(why, size, "%s: %s", path, ferror(file) ? strerror(errno) : "there is no line in it"), false);
    free(line);
    fclose(file);
    if (good && !labels)
        order_labels(t);
    if (good)
        return t;
    texts_free(t);
    return NULL;
}

void texts_free(texts *t)
{
    if (!t)
        return;
    for (int64_t i = 0; i < t->classes; i++)
        free(t->label[i]);
    free(t->label);
    free(t->rows);
    free(t->text);
    free(t);
}

/* ---- looking -------------------------------------------------------------------------------------------------------------- */

int64_t texts_rows(const texts *t)
{
    return t->n;
}

int64_t texts_classes(const texts *t)
{
    return t->classes;
}

const char *texts_class(const texts *t, int64_t i)
{
    return i >= 0 && i < t->classes ? t->label[i] : "";
}

static int64_t count(const texts *t, int64_t label)
{
    int64_t n = 0;
    for (int64_t i = 0; i < t->n; i++)
        n += t->rows[i].label == label;
    return n;
}

double texts_majority(const texts *t, const texts *of)
{
    int64_t best = 0;
    for (int64_t i = 1; i < of->classes; i++)
        if (count(of, i) > count(of, best))
            best = i;
    return (double)count(t, best) / (double)t->n;
}

const char *texts_all(const texts *t, size_t *length)
{
    *length = t->length;
    return t->text;
}

/* ---- rows of ids ---------------------------------------------------------------------------------------------------------- */

typedef struct { int64_t length, *ids, *label, *tokens; } encoded;

static int read_row(void *user, int64_t i, void *const *into)
{
    const encoded *e = user;
    memcpy(into[0], e->ids + i * e->length, (size_t)e->length * sizeof *e->ids);
    *(int64_t *)into[1] = e->label[i];
    *(int64_t *)into[2] = e->tokens[i];
    return 0;
}

static void close_rows(void *user)
{
    encoded *e = user;
    free(e->ids);
    free(e->label);
    free(e->tokens);
    free(e);
}

td_dataset *texts_dataset(const texts *t, const wordpiece *w, int64_t length)
{
    encoded *e = must(malloc(sizeof *e));
    e->length = length;
    e->ids = must(malloc((size_t)(t->n * length) * sizeof *e->ids));
    e->label = must(malloc((size_t)t->n * sizeof *e->label));
    e->tokens = must(malloc((size_t)t->n * sizeof *e->tokens));
    for (int64_t i = 0; i < t->n; i++) {
        const row *r = &t->rows[i];
        e->label[i] = r->label;
        e->tokens[i] = wordpiece_encode(w, t->text + r->at, r->length, e->ids + i * length, length);
    }
    td_field field[] = { { TD_SHAPE(length), TD_I64 }, { TD_SCALAR, TD_I64 }, { TD_SCALAR, TD_I64 } };
    return td_dataset_new(&(td_dataset_source){ .rows = t->n, .field = field, .n_fields = 3, .read = read_row, .close = close_rows }, e);
}
