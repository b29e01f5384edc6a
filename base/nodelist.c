/* base/nodelist.c: Slurm's compressed lists of host names, taken apart. See nodelist.h.
 *
 * One name with brackets is cut into parts (text, then ranges) without copying anything; then an odometer over the brackets writes the names. The
 * list comes from outside: every length, count and number is bounded before it is used.
 */
#include "nodelist.h"
#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { PARTS = 16, RANGES = 1024, DIGITS = 9 };

typedef struct { int64_t low, high; int width; } range;

/* `length` characters of text, then one of the numbers of `count` ranges (0: the name ends here). */
typedef struct {
    const char *text;
    size_t length;
    int first, count;
    int64_t numbers;
} part;

typedef struct {
    const char *all, *at;                      /* the list, and where reading is */
    part part[PARTS];
    int parts;
    range range[RANGES];
    int ranges;
    td__nodes *out;
    size_t room;
    char *error;
    size_t error_size;
} reading;

TD_PRINTF(2, 3) static int complain(reading *r, const char *format, ...)
{
    char what[160];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    snprintf(r->error, r->error_size, "the node list \"%.80s%s\" %s (character %zu)", r->all, strlen(r->all) > 80 ? "…" : "", what,
             (size_t)(r->at - r->all) + 1);
    return TD_ERR_LAUNCH;
}

static bool names_may_have(char c)
{
    return isalnum((unsigned char)c) || c == '-' || c == '_' || c == '.' || c == ':';
}

/* ---- reading one name ------------------------------------------------------------------------------------------------------ */

static int read_number(reading *r, int64_t *value, int *width)
{
    *value = 0;
    for (*width = 0; isdigit((unsigned char)*r->at); r->at++) {
        if (++*width > DIGITS)
            return complain(r, "has a number of more than %d digits", DIGITS);
        *value = 10 * *value + (*r->at - '0');
    }
    return *width ? 0 : complain(r, "lacks a number");
}

static int read_ranges(reading *r, part *p)
{
    p->first = r->ranges;
    do {
        range *g = &r->range[r->ranges];
        r->at++;                               /* the bracket, or a comma */
        if (r->ranges++ == RANGES)
            return complain(r, "has more than %d ranges in one name", RANGES);
        int code = read_number(r, &g->low, &g->width), width = g->width;
        g->high = g->low;
        if (code == 0 && *r->at == '-') {
            r->at++;
            code = read_number(r, &g->high, &width);
        }
        if (code)
            return code;
        if (g->high < g->low)
            return complain(r, "has a range from %lld down to %lld", (long long)g->low, (long long)g->high);
        p->numbers += g->high - g->low + 1;
        p->count++;
    } while (*r->at == ',');
    if (*r->at != ']')
        return complain(r, *r->at ? "has \"%c\" within brackets" : "has a bracket that is not closed", *r->at);
    r->at++;
    return 0;
}

static int read_name(reading *r)
{
    r->parts = r->ranges = 0;
    const char *begin = r->at;
    for (bool more = true; more;) {
        if (r->parts == PARTS)
            return complain(r, "has more than %d brackets in one name", PARTS - 1);
        part *p = &r->part[r->parts++];
        *p = (part){ .text = r->at };
        while (names_may_have(*r->at))
            r->at++;
        p->length = (size_t)(r->at - p->text);
        more = *r->at == '[';
        int code = more ? read_ranges(r, p) : 0;
        if (code)
            return code;
    }
    if (*r->at && *r->at != ',')
        return complain(r, "has a character that no host name has");
    return r->at == begin ? complain(r, "has an empty name") : 0;
}

/* ---- writing its names ------------------------------------------------------------------------------------------------------- */

/* Number `which` of a part's ranges. */
static const range *pick(const reading *r, const part *p, int64_t *which)
{
    const range *g = &r->range[p->first];
    for (; *which > g->high - g->low; g++)
        *which -= g->high - g->low + 1;
    return g;
}

static int write_name(reading *r, const int64_t *counter)
{
    char name[TD_NODE_NAME];
    size_t used = 0;
    for (int i = 0; i < r->parts; i++) {
        const part *p = &r->part[i];
        if (used + p->length + DIGITS + 1 > sizeof name)
            return complain(r, "has a name of more than %d characters", TD_NODE_NAME - DIGITS - 1);
        memcpy(name + used, p->text, p->length);
        used += p->length;
        if (p->count) {
            int64_t which = counter[i];
            const range *g = pick(r, p, &which);
            used += (size_t)snprintf(name + used, sizeof name - used, "%0*lld", g->width, (long long)(g->low + which));
        }
    }
    name[used] = '\0';
    td__nodes *out = r->out;
    if (out->n == r->room) {
        size_t room = r->room ? 2 * r->room : 16;
        char **grown = td__grow(out->name, out->n * sizeof *grown, room * sizeof *grown);
        if (!grown)
            return TD_ERR_MEMORY;
        out->name = grown;
        r->room = room;
    }
    out->name[out->n] = td__strdup(name);
    return out->name[out->n] ? (out->n++, 0) : TD_ERR_MEMORY;
}

static int write_names(reading *r)
{
    int64_t counter[PARTS] = { 0 }, all = 1;
    for (int i = 0; i < r->parts; i++) {
        if (r->part[i].count)
            all *= r->part[i].numbers;
        if (all > TD_NODELIST_MAX || r->out->n + (size_t)all > TD_NODELIST_MAX)
            return complain(r, "names more than %d hosts", TD_NODELIST_MAX);
    }
    for (int64_t k = 0; k < all; k++) {
        int code = write_name(r, counter);
        if (code)
            return code;
        for (int i = r->parts - 1; i >= 0; i--) {
            if (!r->part[i].count)
                continue;
            if (++counter[i] < r->part[i].numbers)
                break;
            counter[i] = 0;
        }
    }
    return 0;
}

int td__nodelist(const char *text, td__nodes *out, char *error, size_t error_size)
{
    *out = (td__nodes){ 0 };
    reading *r = td__calloc(sizeof *r);
    if (!r) {
        snprintf(error, error_size, "no memory for the node list");
        return TD_ERR_MEMORY;
    }
    *r = (reading){ .all = text, .at = text, .out = out, .error = error, .error_size = error_size };
    int code = 0;
    for (bool more = true; more && !code;) {
        code = read_name(r);
        code = code ? code : write_names(r);
        more = *r->at == ',';
        r->at += more;
    }
    if (code == TD_ERR_MEMORY)
        snprintf(error, error_size, "no memory for the node list");
    if (code)
        td__nodelist_free(out);
    td__free(r);
    return code;
}

void td__nodelist_free(td__nodes *nodes)
{
    for (size_t i = 0; i < nodes->n; i++)
        td__free(nodes->name[i]);
    td__free(nodes->name);
    *nodes = (td__nodes){ 0 };
}
