/* launcher/env.c: `tandem env`: the environment variables that Tandem reads, from base's one table.
 */
#include "launcher.h"
#include <stdio.h>
#include <string.h>

/* The job's secret is not for screens and logs. */
static const char *shown(int id)
{
    const char *value = td__env((td__env_id)id);
    return value && id == TD_ENV_SECRET ? "(set)" : value ? value : "-";
}

static int run(int argc, char **argv)
{
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
    .usage = "env",
    .summary = "The environment variables that Tandem reads, with their present values",
    .details = "Each line names a variable, its value in this shell (- when unset), its default and its meaning.\n",
    .run = run,
};
