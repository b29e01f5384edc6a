/* launcher/doctor.c: `tandem doctor`: can this machine train, and with what? One line per thing, a hint where one is missing.
 *
 * The exit status answers one question: does training on the CPU work here? MPI, CUDA and NCCL may be missing.
 */
#include "doctor.h"
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    void (*look)(td__finding *f);
    bool needed;                               /* for training on the CPU of one machine */
} rows[] = {
    { "cores", td__doctor_cores, true },
    { "BLAS", td__doctor_blas, true },
    { "memory", td__doctor_memory, true },
    { "shared memory", td__doctor_shared, true },
    { "black boxes", td__doctor_boxes, false },
    { "mpirun", td__doctor_mpirun, false },
    { "MPI plug-in", td__doctor_mpi, false },
    { "CUDA", td__doctor_cuda, false },
    { "NCCL", td__doctor_nccl, false },
};

static void line(bool ok, const char *name, int length, const char *found, const char *hint)
{
    printf("%-8s %-14.*s %s%s%s\n", ok ? "ok" : "missing:", length, name, found, found[0] && hint[0] ? ": " : "", hint);
}

/* "+name\ttext" or "-name\treason" a line */
static void more_lines(char *text)
{
    for (char *end, *tab; *text; text = end) {
        end = text + strcspn(text, "\n");
        if (*end)
            *end++ = '\0';
        tab = strchr(text, '\t');
        if (tab)
            line(text[0] == '+', text + 1, (int)(tab - text - 1), tab + 1, "");
    }
}

static int run(int argc, char **argv)
{
    if (argc > 1)
        return td__usage("doctor", "unexpected argument \"%s\"", argv[1]);
    bool trains = true;
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        td__finding f = { 0 };
        rows[i].look(&f);
        trains &= f.ok || !rows[i].needed;
        if (f.ok || f.found[0] || f.hint[0])
            line(f.ok, rows[i].name, (int)strlen(rows[i].name), f.found, f.hint);
        more_lines(f.more);
    }
    printf("\nTraining on the CPU %s.\n", trains ? "works here" : "does not work here: see the lines above");
    return trains ? 0 : 1;
}

const td__command td__command_doctor = {
    .name = "doctor",
    .usage = "doctor",
    .summary = "What this machine offers for training, with a hint where something is missing",
    .details = "Looks for cores, BLAS, memory limits, shared memory, MPI, CUDA and NCCL. Exit status 0 when training on\n"
               "the CPU of this machine works, else 1.\n",
    .run = run,
};
