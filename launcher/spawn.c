/* launcher/spawn.c: one rank becomes a process.
 *
 * fork and exec by hand and not uv_spawn: between the two, the child must become the leader of a session of its own (so
 * that a terminal's signals reach it only through us), ask to die with us, and take its cores and memory nodes; libuv offers no such
 * place, and a helper program in between would cost every start a second exec. The child calls only async-signal-safe
 * functions, because the launcher has a thread (the store's). A pipe that closes at exec brings back why exec failed.
 */
#include "launcher.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- which file ---------------------------------------------------------------------------------------------------------------- */

TD_PRINTF(4, 5) static int refuse(int status, char *why, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(why, size, format, args);
    va_end(args);
    return status;
}

static int cannot(const char *program, const char *reason, char *why, size_t size)
{
    return refuse(TD_EXIT_NOT_EXECUTABLE, why, size, "\"%s\" cannot be executed: %s", program, reason);
}

static int check_file(const char *program, char *candidate, char **path, char *why, size_t size)
{
    struct stat s;
    if (stat(candidate, &s) != 0) {
        int error = errno;
        free(candidate);
        return error == ENOENT || error == ENOTDIR ? refuse(TD_EXIT_NOT_FOUND, why, size, "there is no program \"%s\"", program) :
               cannot(program, strerror(error), why, size);
    }
    const char *reason = S_ISDIR(s.st_mode) ? "it is a folder" : !S_ISREG(s.st_mode) ? "it is no ordinary file" :
                         access(candidate, X_OK) != 0 ? "it lacks the permission (chmod +x)" : NULL;
    if (reason) {
        free(candidate);
        return cannot(program, reason, why, size);
    }
    *path = candidate;
    return 0;
}

int td__program_look(const char *program, char **path, char *why, size_t size)
{
    if (!*program)
        return refuse(TD_EXIT_NOT_FOUND, why, size, "the program's name is empty");
    char *candidate = NULL;
    if (strchr(program, '/'))
        return (candidate = strdup(program)) ? check_file(program, candidate, path, why, size) : cannot(program, strerror(ENOMEM), why, size);
    const char *folders = td__getenv("PATH");
    if (!folders || !*folders)
        folders = "/usr/local/bin:/usr/bin:/bin";
    for (const char *p = folders;;) {
        size_t n = strcspn(p, ":");
        struct stat s;
        if (asprintf(&candidate, "%.*s%s%s", (int)n, p, n ? "/" : "", program) < 0)
            return cannot(program, strerror(ENOMEM), why, size);
        if (stat(candidate, &s) == 0 && S_ISREG(s.st_mode) && access(candidate, X_OK) == 0) {
            *path = candidate;
            return 0;
        }
        free(candidate);
        if (!p[n])
            break;
        p += n + 1;
    }
    return refuse(TD_EXIT_NOT_FOUND, why, size, "there is no program \"%s\" in PATH%s", program,
                  access(program, F_OK) == 0 ? " (one lies in this folder: say ./ before its name)" : "");
}

int td__program_find(const char *program, char **path)
{
    char why[4400];
    int status = td__program_look(program, path, why, sizeof why);
    if (status)
        fprintf(stderr, "tandem run: %s\n", why);
    return status;
}

/* ---- the child, between fork and exec -------------------------------------------------------------------------------------------- */

static void put_at(int from, int to)
{
    if (from == to)
        fcntl(to, F_SETFD, 0);                 /* dup2 onto itself would leave it closed at exec */
    else
        dup2(from, to);
}

_Noreturn static void become(const td__start *start, pid_t launcher, const cpu_set_t *cpus, size_t cpus_size, const td__membind *memory,
                             const sigset_t *mask, int report)
{
    setsid();
    prctl(PR_SET_PDEATHSIG, start->death_signal ? start->death_signal : SIGKILL);
    if (getppid() != launcher)                 /* it died before the line above */
        _exit(1);
    if (cpus)
        sched_setaffinity(0, cpus_size, cpus); /* a refusal (a cpuset that shrank just now) costs speed, not the job */
    td__membind_apply(memory);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTSTP, SIG_DFL);                  /* ignored by the head of a job across hosts */
    put_at(start->in, STDIN_FILENO);
    put_at(start->out, STDOUT_FILENO);
    put_at(start->err, STDERR_FILENO);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execve(start->path, start->argv, start->variables);
    int reason = errno;
    while (write(report, &reason, sizeof reason) < 0 && errno == EINTR)
        ;
    _exit(TD_EXIT_NOT_EXECUTABLE);
}

int td__spawn(const td__start *start, pid_t *pid)
{
    cpu_set_t *cpus = NULL;
    size_t cpus_size = 0;
    if (start->cores && hwloc_bitmap_last(start->cores) >= 0) {
        int last = hwloc_bitmap_last(start->cores) + 1;
        cpus = CPU_ALLOC(last);
        cpus_size = CPU_ALLOC_SIZE(last);
        if (!cpus)
            return -ENOMEM;
        CPU_ZERO_S(cpus_size, cpus);
        for (int i = hwloc_bitmap_first(start->cores); i >= 0; i = hwloc_bitmap_next(start->cores, i))
            CPU_SET_S(i, cpus_size, cpus);
    }
    td__membind memory;
    td__membind_make(start->nodes, &memory);
    int report[2], reason = 0;
    if (pipe2(report, O_CLOEXEC) != 0) {       /* never 0, 1 or 2, which dup2 replaces: main keeps those occupied */
        reason = -errno;
        CPU_FREE(cpus);
        return reason;
    }
    /* a signal that arrived between fork and exec would run the launcher's handlers in the child */
    sigset_t all, mask;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &mask);
    pid_t launcher = getpid(), child = fork();
    if (child == 0)
        become(start, launcher, cpus, cpus_size, &memory, &mask, report[1]);
    int fork_error = errno;
    sigprocmask(SIG_SETMASK, &mask, NULL);
    close(report[1]);
    CPU_FREE(cpus);
    if (child < 0) {
        close(report[0]);
        return -fork_error;
    }
    ssize_t n;
    do
        n = read(report[0], &reason, sizeof reason);
    while (n < 0 && errno == EINTR);
    close(report[0]);
    if (n == sizeof reason) {
        waitpid(child, NULL, 0);
        return -reason;
    }
    *pid = child;
    return 0;
}
