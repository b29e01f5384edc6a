/* launcher/main.c: the program `tandem`: one table of subcommands, from which the help is made too.
 */
#include "launcher.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const td__command *const commands[] = { &td__command_run, &td__command_doctor, &td__command_env,
                                             &td__command_agent };

int td__usage(const char *name, const char *format, ...)
{
    char sentence[512];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    fprintf(stderr, "tandem%s%s: %s (see `tandem help%s%s`)\n", *name ? " " : "", name, sentence, *name ? " " : "", name);
    return TD_EXIT_USAGE;
}

static const td__command *find(const char *name)
{
    for (size_t i = 0; i < TD_COUNT(commands); i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static int help(void)
{
    printf("tandem " TD_VERSION ": distributed data-parallel training in C\n\nusage:\n");
    for (size_t i = 0; i < TD_COUNT(commands); i++)
        if (!commands[i]->hidden)
            printf("  tandem %-42s %s\n", commands[i]->usage, commands[i]->summary);
    printf("  tandem %-42s %s\n", "help [SUBCOMMAND]", "this page, or one subcommand's");
    printf("  tandem %-42s %s\n", "--version", "the version");
    return 0;
}

static int help_about(const td__command *command)
{
    printf("usage: tandem %s\n\n%s.\n\n%s", command->usage, command->summary, command->details);
    return 0;
}

static int help_command(int argc, char **argv)
{
    if (argc == 1)
        return help();
    if (argc > 2)
        return td__usage("", "help takes one subcommand, not %d", argc - 1);
    const td__command *command = find(argv[1]);
    return command ? help_about(command) : td__usage("", "there is no subcommand \"%s\"", argv[1]);
}

/* A descriptor 0, 1 or 2 that the caller closed must not be given to a pipe of ours. */
static void fill_standard_descriptors(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
}

int main(int argc, char **argv)
{
    fill_standard_descriptors();
    td_errors(TD_ERRORS_RETURN);
    if (argc < 2)
        return td__usage("", "a subcommand is missing");
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0)
        return printf("tandem %s\n", td_version()) < 0;
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return help();
    if (strcmp(name, "help") == 0)
        return help_command(argc - 1, argv + 1);
    const td__command *command = find(name);
    if (!command)
        return td__usage("", "there is no %s \"%s\"", *name == '-' ? "option" : "subcommand", name);
    if (argc > 2 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0))
        return help_about(command);
    return command->run(argc - 1, argv + 1);
}
