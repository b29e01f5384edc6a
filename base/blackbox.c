/* base/blackbox.c: what this rank is doing, in a small mapped file that survives kill -9.
 *
 * RUNTIME_DIR/JOB.RANK.box is written through a shared mapping, so the kernel keeps the last state whatever ends the
 * process, and the launcher reads it afterwards. The folder is ours alone (0700, our user id, not a link):
 * anything else is refused, and then the box is a private page and the run goes on without a file. A box whose process
 * is gone and that nobody has touched for a day is swept.
 */
#include "base.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "TDBOX1\0"
#define ENDING ".box"
enum { PAGE = 4096, DAY = 24 * 3600 };
_Static_assert(sizeof(td__box) <= PAGE, "a black box is one page");

/* The box has one address for the life of the process: opening maps the file over the anonymous page, closing maps an
 * anonymous page over the file, so that a thread that holds the pointer never writes into nothing. */
static td__box *place;
static pthread_once_t place_once = PTHREAD_ONCE_INIT;
static char path[512];

static void *map_page(void *where, int flags, int fd)
{
    return mmap(where, PAGE, PROT_READ | PROT_WRITE, flags | (where ? MAP_FIXED : 0), fd, 0);
}

static void reserve_place(void)
{
    static td__box without_memory;
    void *page = map_page(NULL, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    place = page == MAP_FAILED ? &without_memory : page;
}

td__box *td__box_get(void)
{
    pthread_once(&place_once, reserve_place);
    return place;
}

/* ---- the folder ---------------------------------------------------------------------------------------------------------- */

/* Exists, is a folder and not a link, is ours, and nobody else may look into it. */
static bool own_folder(const char *folder)
{
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return false;
    struct stat s;
    if (lstat(folder, &s) != 0)
        return false;
    if (!S_ISDIR(s.st_mode)) {
        errno = ENOTDIR;
        return false;
    }
    if (s.st_uid != geteuid()) {
        errno = EPERM;
        return false;
    }
    return (s.st_mode & 077) == 0 || chmod(folder, 0700) == 0;
}

static int format_folder(char *into, size_t size)
{
    const char *chosen = td__env(TD_ENV_RUNTIME_DIR);
    if (chosen)
        return snprintf(into, size, "%s", chosen);
    const char *run = td__getenv("XDG_RUNTIME_DIR");
    struct stat s;
    if (run && *run && stat(run, &s) == 0 && S_ISDIR(s.st_mode) && s.st_uid == geteuid() && access(run, W_OK) == 0)
        return snprintf(into, size, "%s/tandem", run);
    return snprintf(into, size, "/tmp/tandem-%lu", (unsigned long)geteuid());
}

const char *td__runtime_dir(char *into, size_t size)
{
    int length = format_folder(into, size);
    if (length < 0 || (size_t)length >= size) {
        if (size)
            into[0] = '\0';
        errno = ENAMETOOLONG;
        return NULL;
    }
    return own_folder(into) ? into : NULL;
}

/* ---- sweeping -------------------------------------------------------------------------------------------------------------- */

static bool ends_with(const char *name, const char *ending)
{
    size_t n = strlen(name), e = strlen(ending);
    return n > e && strcmp(name + n - e, ending) == 0;
}

static bool process_lives(pid_t pid)
{
    return pid > 0 && (kill(pid, 0) == 0 || errno == EPERM);
}

static bool box_sound(const td__box *box)
{
    return memcmp(box->magic, MAGIC, sizeof box->magic) == 0;
}

static void sweep(const char *folder)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return;
    time_t now = time(NULL);
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct stat s;
        if (!ends_with(entry->d_name, ENDING) || fstatat(dirfd(dir), entry->d_name, &s, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(s.st_mode) || now - s.st_mtime < DAY)
            continue;
        td__box box = { 0 };
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        bool whole = fd >= 0 && read(fd, &box, sizeof box) == (ssize_t)sizeof box && box_sound(&box);
        if (fd >= 0)
            close(fd);
        if (!whole || !process_lives(box.pid))
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
}

/* ---- this process's box ------------------------------------------------------------------------------------------------------ */

static void fill(td__box *box)
{
    const td__world *world = td__world_now();
    memset(box, 0, sizeof *box);
    box->pid = getpid();
    box->rank = world->rank;
    box->size = world->size;
    box->started_ns = td__wall_ns();
    atomic_store(&box->state, TD_BOX_RUNNING);
    memcpy(box->magic, MAGIC, sizeof box->magic);
}

static bool map_file(const char *name)
{
    unlink(name);                              /* of an earlier job with the same name; ours, in a folder of ours */
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    /* the space is taken now: a full disk must be an error here and not a SIGBUS at the first store */
    int reason = posix_fallocate(fd, 0, PAGE);
    if (reason == 0 && map_page(td__box_get(), MAP_SHARED, fd) == MAP_FAILED)
        reason = errno;
    close(fd);
    if (reason) {
        unlink(name);
        errno = reason;
    }
    return reason == 0;
}

int td__box_open(void)
{
    if (path[0])
        td__box_close(false);
    td__box *box = td__box_get();
    fill(box);
    const td__world *world = td__world_now();
    char folder[300], name[sizeof path];
    if (!td__runtime_dir(folder, sizeof folder)) {
        td__info("no black box: %s cannot be used as a folder of ours alone (%s)", folder, strerror(errno));
        return TD_ERR_IO;
    }
    sweep(folder);
    if (world->job[0])
        snprintf(name, sizeof name, "%s/%s.%d" ENDING, folder, world->job, world->rank);
    else
        snprintf(name, sizeof name, "%s/alone-%ld.%d" ENDING, folder, (long)getpid(), world->rank);
    if (!map_file(name)) {
        td__info("no black box: %s cannot be made (%s)", name, strerror(errno));
        return TD_ERR_IO;
    }
    memcpy(path, name, sizeof path);
    fill(box);
    return 0;
}

const char *td__box_path(void)
{
    return path;
}

void td__box_close(bool well)
{
    td__box *box = td__box_get();
    atomic_store(&box->state, well ? TD_BOX_FINISHED : TD_BOX_FAILED);
    if (!path[0])
        return;
    map_page(box, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (well)
        unlink(path);
    path[0] = '\0';
}

/* ---- the reader's side --------------------------------------------------------------------------------------------------------- */

int td__box_read(const char *name, td__box *into)
{
    int fd = open(name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return TD_ERR_IO;
    struct stat s;
    bool sound = fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && read(fd, into, sizeof *into) == (ssize_t)sizeof *into;
    close(fd);
    if (!sound || !box_sound(into))
        return TD_ERR_FORMAT;
    into->doing[sizeof into->doing - 1] = '\0';          /* the writer may have died between two bytes */
    into->last[sizeof into->last - 1] = '\0';
    into->module[sizeof into->module - 1] = '\0';
    into->error[sizeof into->error - 1] = '\0';
    return 0;
}
