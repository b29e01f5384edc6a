/* bench/ops.c: every operation of the library beside the limit of what it must do, on three sizes, forward and gradient.
 *
 *     ./ops                 all; OMP_NUM_THREADS says how many threads
 *     ./ops add softmax     these operations (names of the registry); --small, --cached, --large: at this size alone
 *     ./ops --check         no figures: every operation of the registry has a row, and every row runs
 *
 * An operation goes through its public function, with the graph recorded as in training; its results come from the pool, as in a step that
 * repeats. The gradient's time begins when the result's gradient is there (an operation of our own on top of it takes the time) and ends when
 * td_backward returns, with the leaves' gradients in memory. The limit (ops_limits.c) does the least that the pass must do, on memory of its own:
 * bytes in and out, each once, vector routines, OpenBLAS's sgemm, multiply-adds. Operation and limit take turns; medians. `share` is the limit's time over the
 * operation's. The end lists what is under the aim: 80 % of OpenBLAS, 60 % of anything else.
 */
#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common.h"
#include "ops.h"

enum { MOST_ROUNDS = 25, LEAST_ROUNDS = 7 };
static const double AIM = 0.60, AIM_PRODUCTS = 0.80;
static const size_t LARGEST = 256u << 20;

/* ---- inputs ----------------------------------------------------------------------------------------------------------------- */

static uint64_t drawn = 1;

static uint32_t draw(void)
{
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(drawn >> 33);
}

static int64_t count(td_shape s)
{
    int64_t n = 1;
    for (int i = 0; i < s.ndim; i++)
        n *= s.dim[i];
    return n;
}

static void *scratch(size_t bytes)
{
    static void *memory;
    static size_t size;
    if (bytes > size) {
        free(memory);
        memory = malloc(size = bytes);
    }
    if (!memory) {
        fprintf(stderr, "ops: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return memory;
}

static td_tensor *filled(td_shape shape, ops_values values)
{
    const int64_t n = count(shape);
    float *x = scratch((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        const float u = (float)(draw() >> 7) * 0x1p-24f;
        x[i] = values == POSITIVE ? 0.5f + 1.5f * u : values == UNIT ? 0.1f * (u - 0.5f) : 3.4f * (u - 0.5f);
    }
    return td_keep(td_from(x, shape, TD_F32));
}

void ops_input(ops_case *c, td_shape shape, ops_values values, bool leaf)
{
    c->leaves |= (unsigned)leaf << c->n;
    c->in[c->n++] = filled(shape, values);
}

void ops_indices(ops_case *c, td_shape shape, int64_t below)
{
    const int64_t n = count(shape);
    int64_t *x = scratch((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (int64_t)draw() % below;
    c->in[c->n++] = td_keep(td_from(x, shape, TD_I64));
}

void ops_mask(ops_case *c, td_shape shape)
{
    const int64_t n = count(shape);
    uint8_t *x = scratch((size_t)n);
    for (int64_t i = 0; i < n; i++)
        x[i] = draw() >> 20 & 1;
    c->in[c->n++] = td_keep(td_from(x, shape, TD_BOOL));
}

static double bytes_of(const td_tensor *x)
{
    return (double)td_numel(x) * (double)td_dtype_size(td_dtype_of(x));
}

static void describe(ops_case *c)
{
    size_t at = 0;
    const td_shape s = td_shape_of(c->in[0]);
    for (int i = 0; i < s.ndim; i++)
        at += (size_t)snprintf(c->shape + at, sizeof c->shape - at, "%s%lld", i ? "x" : "", (long long)s.dim[i]);
    if (c->work[FORWARD].products && c->work[FORWARD].product[0].count == 1)
        snprintf(c->shape + at, sizeof c->shape - at, " by %d", c->work[FORWARD].product[0].n);
}

static void count_work(ops_case *c, const ops_row *row, const td_tensor *y, const td_tensor *second)
{
    ops_work *f = &c->work[FORWARD], *g = &c->work[GRADIENT];
    if (!row->counted && f->read + f->written == 0) {
        const double out = bytes_of(y) + (second ? bytes_of(second) : 0);
        for (int i = 0; i < c->n; i++) {
            f->read += bytes_of(c->in[i]);
            g->read += row->reads >> i & 1 ? bytes_of(c->in[i]) : 0;
            g->written += c->leaves >> i & 1 ? bytes_of(c->in[i]) : 0;
        }
        f->written += out;
        g->read += out + (row->reads & OPS_OUT ? out : 0);
    }
    for (int r = 0; r < ROUTINES; r++)
        for (int p = 0; p < PASSES; p++)
            c->work[p].calls[r] += row->calls[p][r] * (double)td_numel(c->in[0]);
}

/* ---- the gradient: an operation on top that hands over a prepared one and takes the time ---------------------------------------- */

typedef struct { td_tensor *g[2]; } seed_attr;
static double seeded;

static int seed_infer(td_call *call)
{
    return td_call_infer(call, 0, TD_SCALAR, TD_F32);
}

static int seed_run(td_call *call)
{
    *(float *)td_data(td_call_output(call, 0)) = 0;
    return 0;
}

static int seed_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *slot)
{
    const seed_attr *a = td_call_attr(call);
    int code = 0;
    (void)grad_out, (void)slot;
    for (size_t i = 0; i < td_call_inputs(call) && !code; i++)
        code = td_call_pass(call, (int)i, a->g[i]);
    seeded = now();
    return code;
}
static const td_op seed_op = { .name = "seed", .infer = seed_infer, .run = seed_run, .grad = seed_grad, .attr_size = sizeof(seed_attr),
                               .flags = TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD };

static double gradient_once(ops_case *c, const ops_row *row, seed_attr *seed)
{
    TD_SCOPE();
    td_tensor *leaves[OPS_IN], *y[2] = { NULL, NULL };
    size_t n = 0;
    y[0] = row->call(c, &y[1]);
    for (int i = 0; i < 2 && y[i]; i++)
        if (!seed->g[i])
            seed->g[i] = td_keep(td_dtype_of(y[i]) == TD_F32 ? filled(td_shape_of(y[i]), UNIT)
                                                             : td_cast(filled(td_shape_of(y[i]), UNIT), td_dtype_of(y[i])));
    td_tensor *loss = td_apply(&seed_op, y, y[1] ? 2 : 1, seed);
    if (td_backward(loss))
        exit(1);
    const double time = now() - seeded;
    for (int i = 0; i < c->n; i++)
        if (c->leaves >> i & 1)
            leaves[n++] = c->in[i];
    td_zero_grad((td_tensors){ leaves, n });
    return time;
}

static double pass_seconds(ops_case *c, const ops_row *row, int pass, seed_attr *seed, int repeats)
{
    double sum = 0;
    if (pass == GRADIENT) {
        for (int i = 0; i < repeats; i++)
            sum += gradient_once(c, row, seed);
        return sum / repeats;
    }
    const double begun = now();
    for (int i = 0; i < repeats; i++) {
        TD_SCOPE();
        td_tensor *second = NULL;
        row->call(c, &second);
    }
    return (now() - begun) / repeats;
}

/* ---- measuring ------------------------------------------------------------------------------------------------------------------ */

typedef struct { double time, limit, spread; } figure;

static figure measure(ops_case *c, const ops_row *row, int pass, seed_attr *seed)
{
    double time[MOST_ROUNDS], limit[MOST_ROUNDS];
    const ops_work *w = &c->work[pass];
    pass_seconds(c, row, pass, seed, 2);
    const double about = pass_seconds(c, row, pass, seed, 1);
    const int repeats = about < 50e-6 ? (int)(50e-6 / (about + 1e-9)) + 1 : 1;
    const double round = 2 * about * repeats;
    int rounds = (int)(0.08 / (round + 1e-9));
    rounds = rounds < LEAST_ROUNDS ? LEAST_ROUNDS : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    for (int i = -1; i < rounds; i++) {                            /* the first warms up                                 */
        const double l = row->view && pass == FORWARD ? 0 : ops_limit_seconds(w, repeats), t = pass_seconds(c, row, pass, seed, repeats);
        if (i >= 0)
            limit[i] = l, time[i] = t;
    }
    const double middle = median(time, rounds);                    /* sorts                                              */
    return (figure){ middle, median(limit, rounds), (time[rounds * 3 / 4] - time[rounds / 4]) / middle };
}

static char under[512][128];
static int unders, held;

static const char *time_text(double s, char *into, size_t size)
{
    snprintf(into, size, s < 1e-5 ? "%.2f us" : s < 1e-3 ? "%.1f us" : "%.2f ms", s < 1e-3 ? 1e6 * s : 1e3 * s);
    return into;
}

/* GFLOP/s of products, else GB/s of the bytes that must move */
static const char *rate_text(const ops_work *w, double time, char *into, size_t size)
{
    double flops = w->flops;
    for (int i = 0; i < w->products; i++)
        flops += 2.0 * w->product[i].m * w->product[i].n * w->product[i].k * w->product[i].count;
    if (flops > 0)
        snprintf(into, size, "%.0f GFLOP/s", flops / time / 1e9);
    else
        snprintf(into, size, "%.1f GB/s", (w->read + w->written) / time / 1e9);
    return into;
}

/* Shares by size and pass, NAN: none; printed in short at the end. */
static struct { const char *name; double share[SIZES][PASSES]; } shares[128];
static int rows_measured;

static void note_share(const ops_row *row, int size, int pass, double share)
{
    const int last = rows_measured - 1;
    if (last < 0 || shares[last].name != row->name) {
        if (rows_measured == (int)(sizeof shares / sizeof *shares))
            return;
        shares[rows_measured].name = row->name;
        for (int i = 0; i < SIZES; i++)
            shares[rows_measured].share[i][FORWARD] = shares[rows_measured].share[i][GRADIENT] = NAN;
        rows_measured++;
    }
    shares[rows_measured - 1].share[size][pass] = share;
}

static void print_shares(void)
{
    printf("\n| share of the limit, %% | small | gradient | cached | gradient | large | gradient |\n|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < rows_measured; i++) {
        printf("| %s |", shares[i].name);
        for (int size = 0; size < SIZES; size++)
            for (int pass = 0; pass < PASSES; pass++)
                if (isnan(shares[i].share[size][pass]))
                    printf(" |");
                else
                    printf(" %.0f |", 100 * shares[i].share[size][pass]);
        printf("\n");
    }
}

static void print_pass(const ops_case *c, const ops_row *row, int size, int pass, figure f)
{
    char time[32], rate[32], limit[32];
    const ops_work *w = &c->work[pass];
    if (f.limit <= 0) {
        printf(" %s | | | |", time_text(f.time, time, sizeof time));
        note_share(row, size, pass, NAN);
        return;
    }
    const double share = f.limit / f.time, aim = w->products ? AIM_PRODUCTS : AIM;
    printf(" %s | %s | %s | %s%.0f %%%s |", time_text(f.time, time, sizeof time), rate_text(w, f.time, rate, sizeof rate),
           rate_text(w, f.limit, limit, sizeof limit), share < aim ? "**" : "", 100 * share, share < aim ? "**" : "");
    note_share(row, size, pass, share);
    held++;
    if (share < aim && unders < (int)(sizeof under / sizeof *under))
        snprintf(under[unders++], sizeof under[0], "%s, %s%s: %.0f %%", row->name, c->shape, pass == GRADIENT ? ", gradient" : "", 100 * share);
}

static void run_case(const ops_row *row, int size, bool check)
{
    ops_case c = { .n = 0 };
    seed_attr seed = { { NULL } };
    if (row->inputs)
        ops_letters(&c, row->inputs, size);
    if (row->make)
        row->make(&c, size);
    for (int i = 0; i < c.n; i++)
        if (c.leaves >> i & 1)
            td_requires_grad((td_tensors){ &c.in[i], 1 }, true);
    describe(&c);
    {
        TD_SCOPE();
        td_tensor *second = NULL, *y = row->call(&c, &second);
        if (td_error_pending())
            exit(1);
        count_work(&c, row, y, second);
    }
    if (check) {
        if (!row->no_gradient)
            gradient_once(&c, row, &seed);
    } else {
        printf("| %s | %s |", row->name, c.shape);
        print_pass(&c, row, size, FORWARD, measure(&c, row, FORWARD, &seed));
        if (row->no_gradient)
            printf(" | | | |");
        else
            print_pass(&c, row, size, GRADIENT, measure(&c, row, GRADIENT, &seed));
        printf("\n");
        fflush(stdout);
    }
    for (int i = 0; i < c.n; i++) {
        td_requires_grad((td_tensors){ &c.in[i], 1 }, false);
        td_release(c.in[i]);
    }
    for (int i = 0; i < 2; i++)
        if (seed.g[i])
            td_release(seed.g[i]);
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------------------- */

static const ops_row *const tables[] = { ops_rows, ops_rows_products };

/* Operations of the registry without a row, and rows of what is not there. */
static int incomplete(void)
{
    int missing = 0;
    for (const td_op *const *op = td_op_registry(); *op; op++) {
        bool found = false;
        for (int t = 0; t < 2; t++)
            for (const ops_row *row = tables[t]; row->op; row++)
                if (!strcmp(row->op, (*op)->name)) {
                    found = true;
                    if (row->no_gradient && !row->view && (*op)->grad)
                        missing += printf("ops: %s has a gradient, its row says that it has none\n", row->op) > 0;
                }
        if (!found)
            missing += printf("ops: %s has no row in bench/ops_rows.c or ops_rows_products.c\n", (*op)->name) > 0;
    }
    for (int t = 0; t < 2; t++)
        for (const ops_row *row = tables[t]; row->op; row++) {
            bool found = false;
            for (const td_op *const *op = td_op_registry(); *op; op++)
                found |= !strcmp(row->op, (*op)->name);
            if (!found)
                missing += printf("ops: there is no operation %s\n", row->op) > 0;
        }
    return missing;
}

static const char *const sizes[SIZES] = { "--small", "--cached", "--large" };

static bool wanted(const ops_row *row, int size, int argc, char **argv)
{
    bool named = false, this = true, any = false;
    for (int i = 1; i < argc; i++) {
        const bool option = argv[i][0] == '-';
        named |= !option;
        any |= !strcmp(argv[i], row->op);
        if (option)
            this = !strcmp(argv[i], sizes[size]);
    }
    return (any || !named) && this;
}

static int check(void)
{
    int missing = incomplete();
    for (int t = 0; t < 2; t++)
        for (const ops_row *row = tables[t]; row->op; row++)
            run_case(row, SMALL, true);
    return missing ? 1 : 0;
}

static void calibrate(const char *when)
{
    printf("%s: OpenBLAS's %s; FMA %.0f GFLOP/s; bytes read and written 2:1, small %.0f, cached %.0f, large %.1f GB/s; %d threads\n", when,
           openblas_get_corename(), ops_fma_rate(0.1) / 1e9, ops_bandwidth(131072, 65536, 200) / 1e9, ops_bandwidth(8 << 20, 4 << 20, 10) / 1e9,
           ops_bandwidth(128 << 20, 64 << 20, 3) / 1e9, omp_get_max_threads());
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    const bool checks = argc == 2 && !strcmp(argv[1], "--check");
    for (int i = 1; i < argc && !checks; i++) {
        bool known = false;
        for (int t = 0; t < 2; t++)
            for (const ops_row *row = tables[t]; row->op; row++)
                known |= !strcmp(row->op, argv[i]);
        for (int size = 0; size < SIZES; size++)
            known |= !strcmp(argv[i], sizes[size]);
        if (!known) {
            fprintf(stderr, "ops: usage: ops [--check | --small | --cached | --large] [operation…]; there is no operation \"%s\"\n", argv[i]);
            return 2;
        }
    }
    if (checks) {
        const int bad = check();
        return td_finish() || bad;
    }
    ops_limits_open(LARGEST);
    calibrate("before");
    printf("\n| operation | shape | forward | rate | limit | share | gradient | rate | limit | share |\n|---|---|---|---|---|---|---|---|---|---|\n");
    for (int t = 0; t < 2; t++)
        for (const ops_row *row = tables[t]; row->op; row++)
            for (int size = 0; size < SIZES; size++)
                if (wanted(row, size, argc, argv))
                    run_case(row, size, false);
    print_shares();
    printf("\n");
    calibrate("after");
    printf("\nUnder the aim (%.0f %% of OpenBLAS, %.0f %% of other limits): %d of %d\n\n", 100 * AIM_PRODUCTS, 100 * AIM, unders, held);
    for (int i = 0; i < unders; i++)
        printf("- %s\n", under[i]);
    return td_finish();
}
