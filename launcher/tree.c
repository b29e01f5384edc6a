/* launcher/tree.c: which processes descend from this one.
 *
 * The launcher adopts what its ranks leave behind (it is their subreaper), so every process that the job started, also
 * one that made itself a daemon, is below it in the tree of parents. Ending the job is ending exactly those.
 */
#include "launcher.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    pid_t pid, parent;
    bool zombie, below;
} process;

/* "PID (NAME) STATE PARENT …"; the name may itself hold brackets and blanks, so its end is the last bracket. */
static bool read_process(int proc, const char *name, process *into)
{
    char path[64], text[512], state;
    snprintf(path, sizeof path, "%.40s/stat", name);
    int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    const char *bracket = strrchr(text, ')');
    if (!bracket || sscanf(bracket + 1, " %c %d", &state, &into->parent) != 2)
        return false;
    into->pid = (pid_t)atol(name);
    into->zombie = state == 'Z' || state == 'X';
    into->below = false;
    return true;
}

static size_t read_processes(process **list)
{
    size_t n = 0, room = 0;
    *list = NULL;
    DIR *dir = opendir("/proc");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        process one;
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || !read_process(dirfd(dir), entry->d_name, &one))
            continue;
        if (n == room) {
            process *grown = realloc(*list, (room = room ? 2 * room : 256) * sizeof *grown);
            if (!grown)
                break;
            *list = grown;
        }
        (*list)[n++] = one;
    }
    if (dir)
        closedir(dir);
    return n;
}

size_t td__tree_below(pid_t **list)
{
    process *all;
    size_t n = read_processes(&all), found = 0;
    pid_t self = getpid();
    /* parents may come after their children in the list: repeat until nothing is new; depth is small */
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < n; i++) {
            if (all[i].below)
                continue;
            bool below = all[i].parent == self;
            for (size_t k = 0; k < n && !below; k++)
                below = all[k].below && all[k].pid == all[i].parent;
            if (below)
                all[i].below = more = true;
        }
    }
    *list = calloc(n ? n : 1, sizeof **list);
    for (size_t i = 0; *list && i < n; i++)
        if (all[i].below && !all[i].zombie)
            (*list)[found++] = all[i].pid;
    free(all);
    return found;
}

size_t td__tree_signal(int number)
{
    pid_t *list;
    size_t n = td__tree_below(&list);
    for (size_t i = 0; list && number && i < n; i++)
        kill(list[i], number);
    free(list);
    return n;
}
