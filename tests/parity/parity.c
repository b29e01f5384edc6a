/* tests/parity/parity.c: one model in one dtype: compared with golden numbers (TAP), or written to a file.
 *
 *     parity MODEL f32|f64 --golden FILE      FILE: made by golden.py with PyTorch, in f64
 *     parity MODEL f32|f64 --dump FILE        the same layout, with this library's numbers
 *
 * Errors are measured against max(|element|, root mean square of its tensor); that of a sum against norm * sqrt(elements), its largest
 * possible value. A gradient that is zero in exact arithmetic (a bias in front of batch norm, of attention's keys) is noise in both
 * programs: it is measured against the root mean square of all gradients.
 *
 * Tolerances. f64: 1e-10. f32, against numbers in f64: with u = 2^-24, `sum` terms in the longest sum and `depth` of them one after the
 * other, rounding errors of one pass are about u * sqrt(sum) * depth (errors of a sum add like a random walk, layers pass them on);
 * the largest of some hundred elements lies within 2 of that. Forward: 2 u sqrt(sum) depth. Gradients pass the depth twice more: 6. After 20 steps
 * gradients' errors have added up 20 times in a part of the weights that the step size makes small: 6 again for SGD and LARS, and for
 * AdamW and LAMB, which divide by the gradients' own size, 6 * sqrt(20).
 *
 * Kinks. A residual network evaluates some 2 million relus in 20 steps, and where an argument's sign is another one in f32 than in f64, one
 * of the (few) terms of a channel's gradient comes or goes; from there on the two trainings differ by a part of what the weights move,
 * in PyTorch's f32 too (docs/parity.md has its figures). Its learning rates are small, so that the weights move by a few percent, and
 * its tolerance is a part of that. In f64, where no sign differs, the 1e-10 stand.
 */
#include "parity.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double tolerance(const parity_model *m, td_dtype dtype, const char *kind)
{
    double unit = 0x1p-24 * sqrt(m->sum) * m->depth;
    if (dtype == TD_F64)
        return 1e-10;
    if (strcmp(kind, "logits") == 0 || strcmp(kind, "loss") == 0 || strcmp(kind, "buffer") == 0)
        return 2 * unit;
    if (m->kinks > 0 && strcmp(kind, "grad") != 0)
        return m->kinks;
    return strcmp(kind, "adamw") == 0 || strcmp(kind, "lamb") == 0 ? 6 * sqrt(20.0) * unit : 6 * unit;
}

static bool of_kind(const char *entry, const char *kind)
{
    size_t n = strlen(kind);
    return strncmp(entry, kind, n) == 0 && (entry[n] == '/' || !entry[n]);
}

static double rms(const double *v)
{
    return v[1] / sqrt(fmax(v[0], 1));
}

/* The largest error of one entry; `floor`: the scale below which its tensor counts as zero. */
static double entry_error(const double *v, const double *want, int n, double floor)
{
    double scale = rms(want), worst;
    if (v[0] != want[0])
        return INFINITY;
    if (scale < 1e-10 * floor)
        scale = floor;
    worst = fmax(fabs(v[1] - want[1]) / (scale * sqrt(v[0])), fabs(v[2] - want[2]) / (scale * v[0]));
    for (int i = 3; i < n; i++) {
        double error = fabs(v[i] - want[i]) / fmax(fabs(want[i]), scale);
        worst = error > worst || error != error ? error : worst;
    }
    return worst == worst ? worst : INFINITY;
}

static int compare(const parity_model *m, td_dtype dtype, const parity_result *r, const char *path)
{
    static const char *const kinds[] = { "logits", "loss", "grad", "buffer", "sgd", "adamw", "lamb", "lars" };
    const int n_kinds = (int)(sizeof kinds / sizeof *kinds);
    td_safetensors *file = td_safetensors_open(path);
    int failed = 0, cases = 1;
    if (td_error_pending())
        return 1;
    bool same = td_safetensors_count(file) == (size_t)r->n;
    for (int i = 0; i < r->n; i++)
        same = same && td_safetensors_has(file, r->entry[i].name);
    printf("%sok 1 - %s %s: %d tensors with the peer's names\n", same ? "" : "not ", m->name, td_dtype_name(dtype), r->n);
    for (int i = 0; !same && i < r->n; i++)
        if (!td_safetensors_has(file, r->entry[i].name))
            printf("# not in the file: %s\n", r->entry[i].name);
    for (size_t i = 0; !same && i < td_safetensors_count(file); i++) {
        bool here = false;
        for (int k = 0; k < r->n; k++)
            here |= strcmp(td_safetensors_name(file, i), r->entry[k].name) == 0;
        if (!here)
            printf("# only in the file: %s\n", td_safetensors_name(file, i));
    }
    failed += !same;
    double floor = 0, squares = 0, count = 0;
    for (int i = 0; same && i < r->n; i++) {
        if (!of_kind(r->entry[i].name, "grad"))
            continue;
        TD_SCOPE();
        const double *want = td_data(td_safetensors_get(file, r->entry[i].name));
        squares += want[1] * want[1];
        count += want[0];
    }
    floor = sqrt(squares / fmax(count, 1));
    for (int k = 0; same && k < n_kinds; k++) {
        double worst = 0, limit = tolerance(m, dtype, kinds[k]);
        const char *where = NULL;
        for (int i = 0; i < r->n; i++) {
            const parity_entry *e = &r->entry[i];
            if (!of_kind(e->name, kinds[k]))
                continue;
            TD_SCOPE();
            td_tensor *want = td_safetensors_get(file, e->name);
            double error = td_numel(want) == e->n ? entry_error(e->value, td_data(want), e->n, strcmp(kinds[k], "grad") == 0 ? floor : 0) : INFINITY;
            if (error >= worst) {
                worst = error;
                where = e->name;
            }
        }
        if (!where)                                            /* a model without buffers */
            continue;
        bool fine = worst <= limit;
        failed += !fine;
        printf("%sok %d - %s %s %s: %.1e of at most %.1e (%s)\n", fine ? "" : "not ", ++cases, m->name, td_dtype_name(dtype), kinds[k], worst,
               limit, where);
    }
    td_safetensors_free(file);
    printf("1..%d\n", cases);
    return failed != 0;
}

static int dump(const parity_result *r, const char *path)
{
    TD_SCOPE();
    td_named *list = calloc((size_t)r->n, sizeof *list);
    for (int i = 0; i < r->n; i++)
        list[i] = (td_named){ r->entry[i].name, td_from(r->entry[i].value, TD_SHAPE(r->entry[i].n), TD_F64) };
    int code = td_safetensors_save(path, list, (size_t)r->n, NULL, 0);
    free(list);
    return code != 0;
}

int main(int argc, char **argv)
{
    const parity_model *m = parity_models;
    while (argc == 5 && m->name && strcmp(m->name, argv[1]) != 0)
        m++;
    if (argc != 5 || !m->name || (strcmp(argv[2], "f32") != 0 && strcmp(argv[2], "f64") != 0)) {
        fprintf(stderr, "usage: parity MODEL f32|f64 --golden|--dump FILE; models:");
        for (m = parity_models; m->name; m++)
            fprintf(stderr, " %s", m->name);
        fprintf(stderr, "\n");
        return 2;
    }
    td_init(NULL, NULL);
    td_dtype dtype = strcmp(argv[2], "f64") == 0 ? TD_F64 : TD_F32;
    parity_result r = { calloc(MAX_ENTRIES, sizeof(parity_entry)), 0 };
    int failed = parity_run(m, dtype, &r) != 0;
    if (!failed)
        failed = strcmp(argv[3], "--dump") == 0 ? dump(&r, argv[4]) : compare(m, dtype, &r, argv[4]);
    free(r.entry);
    return td_finish() || failed;
}
