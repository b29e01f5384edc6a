/* tests/truth/truth.c: walks the table of cases on the ranks it is started with; TAP on rank 0's standard output.
 *
 *     tandem run -n 3 ./truth --backend shm          every case; fails unless the named transport carried them
 *     mpirun -n 2 ./truth --backend shm --model mlp  the cases of one model
 *     ./truth --one                                  one case only (sanitizers)
 */
#include "truth.h"

static const char *const model_name[] = { "mlp", "cnn", "tied", "gpt", "bert", "lstm", "resnet", "resnet_sync" },
                         *const case_name[] = { "plain", "uneven", "accumulate", "branch", "pair" },
                         *const optim_name[] = { "sgd", "adamw" };

static int tests, failures;

static void verdict(bool ok, const char *what, const char *detail)
{
    tests++;
    failures += !ok;
    if (td_rank(td_world()) == 0)
        printf("%s %d - %s # %s\n", ok ? "ok" : "not ok", tests, what, detail);
}

/* Rank 0 measures; all ranks go on with its answer. */
static double from_rank0(double value)
{
    TD_SCOPE();
    td_tensor *v = td_full(TD_SCALAR, TD_F64, value);
    td_broadcast(td_world(), v, 0);
    return td_item(v);
}

static void check(truth_row row)
{
    double worst, bound = row.dtype == TD_F32 ? 1e-5 : 1e-12;
    bool identical;
    char name[128], detail[128];
    int code = truth_run(&row, &worst, &identical);
    worst = from_rank0(worst);
    snprintf(name, sizeof name, "%s %s %s %s on %d ranks", model_name[row.model], case_name[row.kase], optim_name[row.optim],
             td_dtype_name(row.dtype), td_size(td_world()));
    snprintf(detail, sizeof detail, "worst %.2e, bound %.0e%s%s", worst, bound, identical ? "" : ", ranks differ in bits",
             code ? ", error" : "");
    verdict(!code && identical && worst < bound, name, detail);

    if (td_size(td_world()) == 1)
        return;
    row.leave_out = true;
    code = truth_run(&row, &worst, &identical);
    worst = from_rank0(worst);
    strcat(name, ", one rank left out: noticed");
    snprintf(detail, sizeof detail, "worst %.2e, bound %.0e", worst, bound);
    verdict(!code && worst > bound, name, detail);
}

/* ResNet in f64 only: among so many ReLUs f32's rounding turns some over, and each changes gradients by more than any useful bound. */
int main(int argc, char **argv)
{
    const char *backend = NULL, *model = NULL;
    bool one = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--backend") && i + 1 < argc)
            backend = argv[++i];
        else if (!strcmp(argv[i], "--model") && i + 1 < argc)
            model = argv[++i];
        else if (!strcmp(argv[i], "--one"))
            one = true;
        else
            return fprintf(stderr, "truth: unknown argument %s\n", argv[i]), 2;
    }
    td_init(&argc, &argv);
    if (backend)
        verdict(!strcmp(backend, td_comm_backend_name(td_world())), "transport", td_comm_backend_name(td_world()));
    static const struct { truth_optim optim; td_dtype dtype; } ways[] = { { SGD, TD_F64 }, { SGD, TD_F32 }, { ADAMW, TD_F64 } };
    for (truth_model m = MLP; m <= RESNET_SYNC; m++) {
        if (model && strcmp(model, model_name[m]))
            continue;
        truth_case last = m == RESNET ? ACCUMULATE : m == RESNET_SYNC ? UNEVEN : PAIR;   /* norms tell micro-batches from one batch */
        for (truth_case k = PLAIN; k <= last; k++)
            for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
                if (one ? m == CNN && k == BRANCH && w == 0 : m < RESNET || ways[w].dtype == TD_F64)
                    check((truth_row){ .model = m, .kase = k, .optim = ways[w].optim, .dtype = ways[w].dtype });
    }
    verdict(td_memory().live_tensors == 0, "no tensor is left", "td_memory");
    if (td_rank(td_world()) == 0)
        printf("1..%d\n", tests);
    int status = td_finish();
    if (td_memory().live_bytes != 0)           /* after td_finish: the job's own blocks are gone too */
        return fprintf(stderr, "truth: %lld bytes of the pool are left\n", (long long)td_memory().live_bytes), 1;
    return status ? status : failures != 0;
}
