/* tests/cuda/test_rows.c result|gradient [or-skip]: the table of operations (tests/autograd/ops_table.h) on the emulated device: every result and
 * gradient that the CPU's kernels are held to, from the kernels of tensor/cuda. Run with TANDEM_DEVICE=cuda.
 *
 * `without` lists the kernels that CUDA does not have; a kernel that is missing and not listed fails the test, and so does one that is listed
 * and there.
 */
#include "../autograd/ops_table.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const without[] = { NULL };         /* none; the NULL only ends the list                               */
enum { LISTED = sizeof without / sizeof *without - 1 };
static bool seen[LISTED + 1];

/* Was the pending error about a kernel that CUDA lacks? Clears it. -1: no; 0: yes, listed; 1: yes, not listed. */
static int missing(const char *row)
{
    const char *text = td_error_message(), *at = strstr(text, "the kernel \"");
    if (!at || !strstr(text, "does not exist on"))
        return -1;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 12, "\""), at + 12);
    td_error_clear();
    for (int i = 0; i < LISTED; i++)
        if (strcmp(without[i], name) == 0) {
            seen[i] = true;
            return 0;
        }
    printf("%s: the kernel \"%s\" is missing and not listed\n", row, name);
    return 1;
}

typedef struct { const ops_row *row; td_tensor *all[OPS_MAX]; size_t n; } leaves_of;
static td_tensor *apply_row(td_tensor *const *leaf, size_t n, void *user)
{
    leaves_of *g = user;
    td_tensor *in[OPS_MAX] = { 0 };
    (void)n;
    for (size_t i = 0, k = 0; i < g->n; i++)
        in[i] = g->row->grad >> i & 1 ? leaf[k++] : g->all[i];
    return g->row->apply(in, g->n, (void *)(uintptr_t)g->row);
}

/* -1: every kernel is there */
static int lacks(const ops_row *row, td_dtype t, bool gradient)
{
    TD_SCOPE();
    td_tensor *leaf[OPS_MAX];
    leaves_of g = { .row = row };
    g.n = row->inputs(row, t, g.all);
    if (!gradient) {
        row->apply(g.all, g.n, (void *)(uintptr_t)row);
    } else {
        size_t n = 0;
        for (size_t i = 0; i < g.n; i++)
            if (row->grad >> i & 1)
                leaf[n++] = g.all[i];
        td_gradcheck(apply_row, &g, leaf, n, &row->check);
    }
    int r = td_error_pending() ? missing(row->name) : -1;
    td_error_clear();
    return r;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "result";
    const bool gradient = strcmp(mode, "gradient") == 0;
    int checked = 0, left_out = 0, bad = 0;
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    if (td_device_default().kind != TD_CUDA) {
        printf("no such device: %s\n", td_error_message());
        return argc > 2 && strcmp(argv[2], "or-skip") == 0 ? 77 : 1;
    }
    for (const ops_row *const *table = ops_tables(); *table; table++)
        for (const ops_row *row = *table; row->op; row++) {
            if (gradient && !row->grad)
                continue;
            for (int t = TD_F32; t <= TD_BOOL; t++) {
                if (gradient ? t != TD_F64 : !(row->dtypes >> t & 1))
                    continue;
                int l = lacks(row, (td_dtype)t, gradient);
                left_out += l == 0;
                bad += l == 1;
                if (l >= 0)
                    continue;
                checked++;
                bad += gradient ? ops_check_gradient(row) : ops_check_result(row, (td_dtype)t);
            }
        }
    for (int i = 0; i < LISTED; i++)
        if (!gradient && !seen[i] && strstr(without[i], "_grad") == NULL) {
            printf("the kernel \"%s\" is listed as missing, and nothing missed it\n", without[i]);
            bad++;
        }
    td__scope_close_root();
    if (td_memory().live_tensors || td_memory().live_bytes) {
        printf("%lld tensors, %lld bytes are left\n", (long long)td_memory().live_tensors, (long long)td_memory().live_bytes);
        bad++;
    }
    printf("%s: %d checked, %d left out for want of a kernel, %d bad\n", mode, checked, left_out, bad);
    return bad || !checked;
}
