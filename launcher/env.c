/* launcher/env.c: `tandem env`: the environment variables that Tandem reads, from base's one table; and the user's key.
 */
#include "launcher.h"
#include <meet.h>
#include <stdio.h>
#include <string.h>

/* The job's secret is not for screens and logs. */
static const char *shown(int id)
{
    const char *value = td__env((td__env_id)id);
    return value && id == TD_ENV_SECRET ? "(set)" : value ? value : "-";
}

static int make_key(void)
{
    char path[1024], error[1400];
    if (td__key_make(path, sizeof path, error, sizeof error)) {
        fprintf(stderr, "tandem env: %s\n", error);
        return 1;
    }
    printf("made %s; copy it to the other hosts of your jobs, with its permissions (0600)\n", path);
    return 0;
}

static int run(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--make-key") == 0)
        return make_key();
    if (argc > 1)
        return td__usage("env", "unexpected argument \"%s\"", argv[1]);
    size_t name = strlen("VARIABLE"), value = strlen("NOW"), standard = strlen("DEFAULT");
    for (int i = 0; i < TD_ENV_COUNT; i++) {
        const td__env_row *row = &td__env_table[i];
        name = strlen(row->name) > name ? strlen(row->name) : name;
        value = strlen(shown(i)) > value ? strlen(shown(i)) : value;
        standard = strlen(row->standard) > standard ? strlen(row->standard) : standard;
    }
    printf("%-*s  %-*s  %-*s  %s\n", (int)name, "VARIABLE", (int)value, "NOW", (int)standard, "DEFAULT", "MEANING");
    for (int i = 0; i < TD_ENV_COUNT; i++) {
        const td__env_row *row = &td__env_table[i];
        printf("%-*s  %-*s  %-*s  %s\n", (int)name, row->name, (int)value, shown(i), (int)standard, row->standard, row->help);
    }
    return 0;
}

const td__command td__command_env = {
    .name = "env",
    .usage = "env [--make-key]",
    .summary = "The environment variables that Tandem reads, with their present values",
    .details = "Each line names a variable, its value in this shell (- when unset), its default and its meaning.\n"
               "\n"
               "  --make-key   makes the key file (TANDEM_KEY_FILE, $HOME/.tandem/key), unless there is one. Jobs over several\n"
               "               hosts that neither tandem run nor MPI started (torchrun, plain srun) derive their secret from\n"
               "               it: it must be the same on all hosts and readable by you alone.\n",
    .run = run,
};
