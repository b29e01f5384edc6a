/* comm/arena.c: memory of one rank that every rank of the host can reach.
 *
 * A sparse memfd as large as the machine's memory, mapped once, so that addresses never move and peers never map anew. Space is
 * reserved (fallocate) before it is handed out: too little memory is a sentence here, not a SIGBUS in somebody's kernel. Blocks are kept in a list
 * by address and the first that fits is taken, so a job in steady state asks the system for nothing. Who knows that much was needed only once has
 * free blocks trimmed: they become holes of the file, and are reserved anew when they are taken. Blocks may outlive the communicator: the
 * mapping goes with the last of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#include "control.h"

enum { ALIGN = 64, PAGE = 4096, GROW = 1 << 20 };

typedef struct block {
    struct block *next;
    size_t at, bytes;
    bool   used, dirty;                        /* dirty: has been handed out before, so it is not known to be zero                 */
    bool   hole, held;                         /* some of it was trimmed; some of it was not                                    */
} block;

struct td__arena {
    pthread_mutex_t lock;
    int    fd;
    char  *base;
    size_t bytes, reserved, limit;
    block *first;
    int    live;
    bool   closed;
};

static size_t address_space(int ranks)
{
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t room = ((size_t)1 << 45) / (size_t)ranks;
    struct rlimit r;
    if (getrlimit(RLIMIT_AS, &r) == 0 && r.rlim_cur != RLIM_INFINITY && r.rlim_cur / 4 / (size_t)ranks < room)
        room = r.rlim_cur / 4 / (size_t)ranks;
    size_t bytes = memory < room ? memory : room;
    return bytes / GROW * GROW + GROW;
}

int td__arena_open(td__arena **out, int ranks, char *error, size_t size)
{
    td__arena *a = td__calloc(sizeof *a);
    *out = NULL;
    if (!a)
        return TD_ERR_MEMORY;
    pthread_mutex_init(&a->lock, NULL);
    a->bytes = a->limit = address_space(ranks);
    a->fd = memfd_create("tandem-arena", MFD_CLOEXEC);
    if (a->fd >= 0 && ftruncate(a->fd, (off_t)a->bytes) == 0)
        a->base = mmap(NULL, a->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, a->fd, 0);
    else
        a->base = MAP_FAILED;
    if (a->base == MAP_FAILED) {
        snprintf(error, size, "td_init: %zu MiB of address space for shared memory cannot be had (%s)", a->bytes >> 20, strerror(errno));
        if (a->fd >= 0)
            close(a->fd);
        td__free(a);
        return TD_ERR_MEMORY;
    }
    madvise(a->base, a->bytes, MADV_DONTDUMP);   /* a core file must not hold every rank's gradients, nor the holes */
    *out = a;
    return 0;
}

int td__arena_fd(const td__arena *a)
{
    return a->fd;
}

void *td__arena_base(const td__arena *a, size_t *bytes)
{
    *bytes = a->bytes;
    return a->base;
}

bool td__arena_set_limit(td__arena *a, size_t bytes)
{
    a->limit = bytes < a->bytes ? bytes : a->bytes;
    return a->limit == bytes;
}

/* ---- how much may still be had -------------------------------------------------------------------------------------------------- */

static bool read_number(const char *path, const char *key, size_t *value)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0) {
            char *end, *text = line + strlen(key);
            *value = strtoull(text, &end, 10);
            found = end != text;
        }
    fclose(f);
    return found;
}

/* Reserving more than there is does not fail: the kernel kills somebody. So the kernel is asked first. */
static size_t available(void)
{
    size_t kib, most = SIZE_MAX, limit, used;
    if (read_number("/proc/meminfo", "MemAvailable:", &kib))
        most = kib << 10;
    if (read_number("/sys/fs/cgroup/memory.max", "", &limit) && read_number("/sys/fs/cgroup/memory.current", "", &used)) {
        size_t left = limit > used ? limit - used : 0;
        most = left < most ? left : most;
    }
    return most;
}

static bool reserve_range(td__arena *a, size_t from, size_t bytes, char *error, size_t size)
{
    size_t left = bytes > 16 * (size_t)GROW ? available() : SIZE_MAX;
    int code = from + bytes > a->limit || bytes > left ? ENOMEM : 0;
    while (!code && fallocate(a->fd, 0, (off_t)from, (off_t)bytes) != 0)
        code = errno == EINTR ? 0 : errno;
    if (code) {
        if (from + bytes > a->limit)
            left = a->limit > from ? a->limit - from : 0;
        snprintf(error, size, "%zu MiB of shared memory cannot be had: %s (%zu MiB are in use%s)", (bytes >> 20) + 1, strerror(code),
                 a->reserved >> 20, left == SIZE_MAX ? "" : ", less is left");
    }
    return !code;
}

static bool reserve(td__arena *a, size_t end, char *error, size_t size)
{
    if (end <= a->reserved)
        return true;
    size_t wanted = (end + GROW - 1) / GROW * GROW;
    if (!reserve_range(a, a->reserved, wanted - a->reserved, error, size))
        return false;
    a->reserved = wanted;
    return true;
}

/* ---- blocks ---------------------------------------------------------------------------------------------------------------------- */

static block *new_block(block *after, size_t at, size_t bytes, bool dirty)
{
    block *b = td__alloc(sizeof *b);
    if (b)
        *b = (block){ .next = after, .at = at, .bytes = bytes, .dirty = dirty, .held = true };
    return b;
}

static block *take(td__arena *a, size_t bytes, char *error, size_t size)
{
    block **at = &a->first;
    size_t end = 0;
    for (; *at; at = &(*at)->next) {
        block *b = *at;
        end = b->at + b->bytes;
        if (b->used || b->bytes < bytes)
            continue;
        if (b->hole && !reserve_range(a, b->at, bytes, error, size))
            return NULL;
        if (b->bytes - bytes >= ALIGN) {
            block *rest = new_block(b->next, b->at + bytes, b->bytes - bytes, b->dirty);
            if (!rest)
                return NULL;
            rest->hole = b->hole;
            rest->held = b->held;
            b->bytes = bytes;
            b->next = rest;
        }
        b->hole = false;
        b->held = true;
        return b;
    }
    if (!reserve(a, end + bytes, error, size))
        return NULL;
    return *at = new_block(NULL, end, bytes, false);
}

void *td__arena_alloc(td__arena *a, size_t bytes, char *error, size_t size)
{
    size_t unit = bytes < PAGE ? ALIGN : PAGE;
    if (bytes > a->bytes) {
        snprintf(error, size, "%zu MiB of shared memory cannot be had: the machine has less", bytes >> 20);
        return NULL;
    }
    bytes = bytes ? (bytes + unit - 1) / unit * unit : ALIGN;
    pthread_mutex_lock(&a->lock);
    snprintf(error, size, "no memory");
    block *b = take(a, bytes, error, size);
    bool dirty = b && b->dirty;
    if (b) {
        b->used = b->dirty = true;
        a->live++;
    }
    pthread_mutex_unlock(&a->lock);
    if (dirty)
        memset(a->base + b->at, 0, b->bytes);
    return b ? a->base + b->at : NULL;
}

static void merge(block *b)
{
    block *next = b->next;
    if (!next || b->used || next->used)
        return;
    b->bytes += next->bytes;
    b->dirty |= next->dirty;
    b->hole |= next->hole;
    b->held |= next->held;
    b->next = next->next;
    td__free(next);
}

static void destroy(td__arena *a)
{
    munmap(a->base, a->bytes);
    close(a->fd);
    while (a->first) {
        block *next = a->first->next;
        td__free(a->first);
        a->first = next;
    }
    pthread_mutex_destroy(&a->lock);
    td__free(a);
}

void td__arena_free(td__arena *a, void *memory)
{
    size_t at = (size_t)((char *)memory - a->base);
    pthread_mutex_lock(&a->lock);
    block *before = NULL, *b = a->first;
    for (; b && b->at != at; b = b->next)
        before = b;
    if (b && b->used) {
        b->used = false;
        a->live--;
        merge(b);
        if (before)
            merge(before);
    }
    bool gone = a->closed && a->live == 0;
    pthread_mutex_unlock(&a->lock);
    if (gone)
        destroy(a);
}

void *td__arena_block(td__arena *a, size_t bytes)
{
    char error[200];
    void *memory = td__arena_alloc(a, bytes, error, sizeof error);
    if (!memory && !td__pending())
        td__fail(TD_ERR_MEMORY, "%s", error);
    return memory;
}

void td__arena_free_block(void *arena, void *memory)
{
    td__arena_free(arena, memory);
}

/* The pages at both ends are shared with neighbours and stay. */
void td__arena_trim(td__arena *a)
{
    pthread_mutex_lock(&a->lock);
    for (block *b = a->first; b; b = b->next) {
        const size_t from = (b->at + PAGE - 1) / PAGE * PAGE, to = (b->at + b->bytes) / PAGE * PAGE;
        if (b->used || !b->held || to <= from || to - from < GROW)
            continue;
        if (fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) == 0)
            b->hole = true, b->held = false;
    }
    pthread_mutex_unlock(&a->lock);
}

void td__arena_close(td__arena *a)
{
    pthread_mutex_lock(&a->lock);
    a->closed = true;
    bool gone = a->live == 0;
    pthread_mutex_unlock(&a->lock);
    if (gone)
        destroy(a);
}
