/* tests/base/child.h: run a function in a forked child and see what it printed and how it ended.
 */
#ifndef TESTS_BASE_CHILD_H
#define TESTS_BASE_CHILD_H
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    int  status;                               /* of waitpid */
    char out[8192], err[8192];
} child_result;

static inline void child_slurp(int fd, char *into, size_t size)
{
    size_t used = 0;
    for (ssize_t n; used + 1 < size && (n = read(fd, into + used, size - 1 - used)) > 0;)
        used += (size_t)n;
    into[used] = '\0';
    close(fd);
}

/* What the child prints fits into a pipe's 64 KiB, so reading one after the other cannot block it. */
static inline child_result child_run(void (*body)(void *), void *argument)
{
    static child_result r;
    int out[2], err[2];
    fflush(NULL);
    if (pipe(out) != 0 || pipe(err) != 0)
        abort();
    pid_t pid = fork();
    if (pid < 0)
        abort();
    if (pid == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
        dup2(out[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
        close(out[0]), close(err[0]), close(out[1]), close(err[1]);
        body(argument);
        fflush(stdout);
        _exit(0);
    }
    close(out[1]), close(err[1]);
    child_slurp(out[0], r.out, sizeof r.out);
    child_slurp(err[0], r.err, sizeof r.err);
    waitpid(pid, &r.status, 0);
    return r;
}
#endif
