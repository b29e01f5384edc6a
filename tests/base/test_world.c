/* tests/base/test_world.c: made-up environments, and the world or the sentence that must come of them.
 */
#include <base.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define SECRET "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100"
#define SBATCH "SLURM_JOB_ID=77", "SLURM_NTASKS=4", "SLURM_PROCID=0", "SLURM_LOCALID=0"
#define SRUN(rank) "SLURM_JOB_ID=77", "SLURM_STEP_ID=2", "SLURM_NTASKS=4", "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=" rank, "SLURM_LOCALID=1"
#define OMPI(rank) "OMPI_COMM_WORLD_RANK=" rank, "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1", "OMPI_COMM_WORLD_LOCAL_SIZE=2", \
                   "PMIX_NAMESPACE=1234/1", "PMIX_RANK=" rank
#define TORCH(rank) "RANK=" rank, "WORLD_SIZE=4", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=2", "MASTER_ADDR=n0", "MASTER_PORT=29500"
#define OURS(rank) "TANDEM_RANK=" rank, "TANDEM_SIZE=3", "TANDEM_LOCAL_RANK=1", "TANDEM_LOCAL_SIZE=3", "TANDEM_JOB=j.1"

typedef struct {
    const char *variables[24];
    const char *launcher;                      /* expected … */
    int rank, size, local_rank, local_size;
    const char *job;                           /* a part of it */
    const char *sentence;                      /* … or this part of the error */
} row;

static const row rows[] = {
    /* ---- alone ---- */
    { { NULL }, "none", 0, 1, 0, 1, "alone-", NULL },
    { { SBATCH }, "none", 0, 1, 0, 1, "alone-", NULL },                     /* ./train in a batch script */
    { { SBATCH, "SLURM_STEP_ID=1", "SLURM_STEP_NUM_TASKS=1" }, "none", 0, 1, 0, 1, "alone-", NULL },     /* salloc's shell */
    { { "RANK=3" }, "none", 0, 1, 0, 1, "alone-", NULL },                   /* anybody's variable */
    { { "WORLD_SIZE=3" }, "none", 0, 1, 0, 1, "alone-", NULL },
    { { "TANDEM_JOB=x" }, "none", 0, 1, 0, 1, "alone-", NULL },
    { { "MASTER_ADDR=n0", "MASTER_PORT=1" }, "none", 0, 1, 0, 1, "alone-", NULL },
    /* ---- ours ---- */
    { { OURS("2") }, "tandem", 2, 3, 1, 3, "j.1", NULL },
    { { OURS("2"), TORCH("1"), OMPI("0"), SRUN("3") }, "tandem", 2, 3, 1, 3, "j.1", NULL },              /* innermost */
    { { "TANDEM_RANK=0", "TANDEM_SIZE=1" }, "tandem", 0, 1, 0, 1, "alone-", NULL },
    { { OURS("2"), "TANDEM_SECRET=" SECRET }, "tandem", 2, 3, 1, 3, "j.1", NULL },
    { { OURS("2"), "TANDEM_SECRET=00" }, .sentence = "expected 64 hexadecimal digits" },
    { { OURS("2"), "TANDEM_SECRET=x0112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100" },
      .sentence = "expected 64 hexadecimal digits" },
    { { OURS("3") }, .sentence = "TANDEM_RANK is 3 in a world of 3 (TANDEM_SIZE): ranks go from 0 to 2" },
    { { OURS("-1") }, .sentence = "TANDEM_RANK is \"-1\": expected a whole number, at least 0" },
    { { "TANDEM_RANK=0", "TANDEM_SIZE=two", "TANDEM_JOB=j" }, .sentence = "TANDEM_SIZE is \"two\"" },
    { { "TANDEM_RANK=0", "TANDEM_SIZE=0", "TANDEM_JOB=j" }, .sentence = "TANDEM_SIZE is \"0\": expected a whole number, at least 1" },
    { { "TANDEM_RANK=0", "TANDEM_JOB=j" }, .sentence = "TANDEM_RANK is set and TANDEM_SIZE is not" },
    { { "TANDEM_SIZE=2", "TANDEM_JOB=j" }, .sentence = "TANDEM_SIZE is set and TANDEM_RANK is not" },
    { { "TANDEM_RANK=0", "TANDEM_SIZE=2" }, .sentence = "TANDEM_JOB is not" },
    /* ---- torchrun ---- */
    { { TORCH("3"), "TORCHELASTIC_RUN_ID=abc/d" }, "torchrun", 3, 4, 1, 2, "abc_d-n0-29500", NULL },
    { { TORCH("3") }, "torchrun", 3, 4, 1, 2, "none-n0-29500", NULL },      /* by hand */
    { { TORCH("3"), SRUN("0") }, "torchrun", 3, 4, 1, 2, "29500", NULL },   /* under srun */
    { { TORCH("3"), OMPI("0") }, "torchrun", 3, 4, 1, 2, "29500", NULL },
    { { TORCH("4") }, .sentence = "RANK is 4 in a world of 4 (WORLD_SIZE)" },
    { { "TORCHELASTIC_RUN_ID=abc" }, .sentence = "WORLD_SIZE" },
    { { "TORCHELASTIC_RUN_ID=abc", "RANK=0" }, .sentence = "RANK is set and WORLD_SIZE is not" },
    { { "RANK=1", "WORLD_SIZE=4", "LOCAL_RANK=2", "LOCAL_WORLD_SIZE=4" }, .sentence = "fewer ranks precede it" },
    { { "RANK=3", "WORLD_SIZE=4", "LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2" }, .sentence = "LOCAL_RANK is 2 with 2 ranks on this host" },
    { { "RANK=3", "WORLD_SIZE=4", "LOCAL_RANK=2", "LOCAL_WORLD_SIZE=8" }, .sentence = "more than the whole world of 4" },
    { { "RANK=1", "WORLD_SIZE=4" }, "torchrun", 1, 4, -1, 0, "torchrun-", NULL },
    /* ---- Open MPI, PMIx, PMI ---- */
    { { OMPI("3") }, "openmpi", 3, 4, 1, 2, "1234_1", NULL },
    { { OMPI("3"), SRUN("0") }, "openmpi", 3, 4, 1, 2, "1234_1", NULL },
    { { OMPI("3"), SBATCH }, "openmpi", 3, 4, 1, 2, "1234_1", NULL },       /* mpirun in a batch script */
    { { "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2", "OMPI_MCA_ess_base_jobid=99" }, "openmpi", 0, 2, -1, 0, "-99", NULL },
    { { "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2", "OMPI_MCA_orte_ess_jobid=98" }, "openmpi", 0, 2, -1, 0, "-98", NULL },
    { { "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2" }, .sentence = "the job has no name" },
    { { "OMPI_COMM_WORLD_RANK=0" }, .sentence = "OMPI_COMM_WORLD_RANK is set and OMPI_COMM_WORLD_SIZE is not" },
    { { OMPI("4") }, .sentence = "OMPI_COMM_WORLD_RANK is 4 in a world of 4" },
    { { "PMIX_RANK=1", "PMIX_NAMESPACE=slurm.pmix.77.2", SRUN("1") }, "pmi", 1, 4, 1, 0, "slurm.pmix.77.2", NULL },
    { { "PMIX_RANK=1", "PMIX_NAMESPACE=x" }, .sentence = "known to MPI alone" },
    { { "PMIX_RANK=1" }, .sentence = "PMIX_RANK is set and PMIX_NAMESPACE is not" },
    { { "PMI_RANK=1", "PMI_SIZE=2", "MPI_LOCALRANKID=1", "MPI_LOCALNRANKS=2", "PMI_PORT=n0:4711" }, "pmi", 1, 2, 1, 2, "n0_4711", NULL },
    { { "PMI_RANK=1", "PMI_SIZE=4", SRUN("1") }, "pmi", 1, 4, 1, 0, "77.2", NULL },
    { { "PMI_RANK=1", "PMI_SIZE=2", "PMI_FD=6", SRUN("1") }, "pmi", 1, 2, -1, 0, "77.2", NULL },         /* not the step's world */
    { { "PMI_RANK=1", "PMI_SIZE=4", SRUN("1"), "SLURM_STEP_TASKS_PER_NODE=4", "SLURM_NODEID=0" }, "pmi", 1, 4, 1, 4, "77.2", NULL },
    { { "PMI_RANK=1", "PMI_SIZE=2", "PMI_FD=6" }, "pmi", 1, 2, -1, 0, "parent", NULL },
    { { "PMI_RANK=1", "PMI_SIZE=2" }, .sentence = "the job has no name" },
    { { "PMI_RANK=2", "PMI_SIZE=2", "PMI_FD=6" }, .sentence = "PMI_RANK is 2 in a world of 2" },
    { { "PMI_SIZE=2" }, .sentence = "PMI_SIZE is set and PMI_RANK is not" },
    /* ---- Slurm ---- */
    { { SRUN("3") }, "slurm", 3, 4, 1, 0, "77.2", NULL },
    { { SRUN("3"), "SLURM_STEP_TASKS_PER_NODE=2(x2)", "SLURM_NODEID=1" }, "slurm", 3, 4, 1, 2, "77.2", NULL },
    { { SRUN("1"), "SLURM_STEP_TASKS_PER_NODE=3,1", "SLURM_NODEID=0" }, "slurm", 1, 4, 1, 3, "77.2", NULL },
    { { SRUN("3"), "SLURM_STEP_TASKS_PER_NODE=1,3", "SLURM_NODEID=1" }, "slurm", 3, 4, 1, 3, "77.2", NULL },
    { { SRUN("3"), "SLURM_STEP_TASKS_PER_NODE=4", "SLURM_NODEID=1" }, "slurm", 3, 4, 1, 0, "77.2", NULL },
    { { SRUN("3"), "SLURM_STEP_TASKS_PER_NODE=rubbish(x", "SLURM_NODEID=1" }, "slurm", 3, 4, 1, 0, "77.2", NULL },
    { { SRUN("3"), "SLURM_STEP_TASKS_PER_NODE=3,1", "SLURM_NODEID=1" }, .sentence = "gives this node 1 of 4 ranks" },
    { { SRUN("4") }, .sentence = "SLURM_PROCID is 4 in a world of 4" },
    { { "SLURM_STEP_NUM_TASKS=4" }, .sentence = "SLURM_STEP_NUM_TASKS is set and SLURM_PROCID is not" },
    { { "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=1" }, .sentence = "SLURM_JOB_ID is not" },
    { { "SLURM_STEP_NUM_TASKS=4x", "SLURM_PROCID=1", "SLURM_JOB_ID=1", "SLURM_STEP_ID=1" }, .sentence = "SLURM_STEP_NUM_TASKS is \"4x\"" },
    { { "SLURM_STEP_NUM_TASKS=99999999999", "SLURM_PROCID=1", "SLURM_JOB_ID=1", "SLURM_STEP_ID=1" }, .sentence = "99999999999" },
};

static const row *current;

static const char *get(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < TD_COUNT(current->variables) && current->variables[i]; i++)
        if (strncmp(current->variables[i], name, length) == 0 && current->variables[i][length] == '=')
            return current->variables[i] + length + 1;
    return NULL;
}

static void table(void **state)
{
    int wrong = 0;
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        const row *r = current = &rows[i];
        td__world w;
        char error[300];
        int code = td__world_find(get, &w, error, sizeof error);
        if (r->sentence) {
            if (code != TD_ERR_LAUNCH || !strstr(error, r->sentence)) {
                print_error("row %zu: %d \"%s\", expected \"%s\"\n", i, code, error, r->sentence);
                wrong++;
            }
        } else if (code != 0 || w.rank != r->rank || w.size != r->size || w.local_rank != r->local_rank ||
                   w.local_size != r->local_size || strcmp(w.launcher, r->launcher) != 0 || !strstr(w.job, r->job) ||
                   strspn(w.job, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != strlen(w.job)) {
            print_error("row %zu: %d \"%s\": %s, rank %d of %d, local %d of %d, job %s\n", i, code, error, w.launcher, w.rank, w.size,
                        w.local_rank, w.local_size, w.job);
            wrong++;
        }
    }
    assert_int_equal(wrong, 0);
    assert_int_equal(td_error_pending(), 0);
}

static void secrets(void **state)
{
    static const row with = { { OURS("2"), "TANDEM_SECRET=" SECRET } }, without = { { OURS("2") } };
    td__world w;
    char error[300];
    current = &with;
    assert_int_equal(td__world_find(get, &w, error, sizeof error), 0);
    assert_true(w.has_secret);
    const unsigned char head[] = { 0x00, 0x11, 0x22 }, tail[] = { 0x22, 0x11, 0x00 };
    assert_memory_equal(w.secret, head, 3);
    assert_memory_equal(w.secret + 29, tail, 3);
    assert_int_equal(w.secret[16], 0xff);
    current = &without;
    td__world_find(get, &w, error, sizeof error);
    assert_false(w.has_secret);
}

/* Names become parts of file names: a hostile one must not leave its folder. */
static void job_names_are_harmless(void **state)
{
    static const row hostile = { { "TANDEM_RANK=0", "TANDEM_SIZE=2", "TANDEM_JOB=../../etc/passwd" } };
    td__world w;
    char error[300];
    current = &hostile;
    assert_int_equal(td__world_find(get, &w, error, sizeof error), 0);
    assert_string_equal(w.job, "_._.._etc_passwd");
}

static void now(void **state)
{
    assert_int_equal(td__world_now()->size, 1);
    td__world w = { .rank = 1, .size = 5, .launcher = "mpi" };
    td__world_set(&w);
    assert_int_equal(td__world_now()->size, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table), cmocka_unit_test(secrets), cmocka_unit_test(job_names_are_harmless), cmocka_unit_test(now),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
