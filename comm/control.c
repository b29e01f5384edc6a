/* comm/control.c: meeting the other ranks of the host, and noticing when one will never come.
 *
 * A meeting point: every rank adds one to `arrivals`; all are there when it reaches the next multiple of n. The last one wakes the
 * sleepers. A rank announces that it sleeps before it looks at `arrivals` for the last time, and the last arrival looks for sleepers after
 * it has counted itself, so no wake-up is lost. Sleeps are short all the same: between them the rank looks whether the others
 * still live, whether somebody has published a verdict, and at the clock.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "point.h"

enum { TICK_NS = 20 * 1000 * 1000, CHECKED_PER_TICK = 16, SPIN_NS = 3000 };
#define STOPPED_FOR 0.4   /* a rank that is seen stopped for so long is not merely being continued together with us          */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() atomic_signal_fence(memory_order_seq_cst)
#endif

void td__futex_sleep(_Atomic uint32_t *word, uint32_t value, int64_t ns)
{
    struct timespec t = { ns / 1000000000, ns % 1000000000 };
    syscall(SYS_futex, word, FUTEX_WAIT, value, &t, NULL, 0);
}

void td__futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* ---- who lives -------------------------------------------------------------------------------------------------------------- */

/* State letter of a process ('\0': there is none), its number of threads and its start time. */
static char process_state(int pid, uint64_t *started, long *threads)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ESRCH ? '\0' : '?';
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return '\0';
    text[n] = '\0';
    char *field = strrchr(text, ')');          /* the name may hold anything, but not what follows it */
    if (!field)
        return '?';
    char state = field[2];
    field += 2;
    for (int i = 3; i < 20 && field; i++)
        field = strchr(field + 1, ' ');
    *threads = field ? strtol(field, NULL, 10) : 1;
    for (int i = 20; i < 22 && field; i++)
        field = strchr(field + 1, ' ');
    *started = field ? strtoull(field, NULL, 10) : 0;
    return state;
}

void td__process_identity(int pid, uint64_t *started)
{
    long threads;
    *started = 0;
    process_state(pid, started, &threads);
}

/* A rank on the same host whose process ends in a normal way leaves word, whether or not it called td_finish. Registered when the world
 * opens, so that it runs before what other libraries do at the end, which may take its time. */
static td__control *open_controls;
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;

static void leave_word(void)
{
    pthread_mutex_lock(&open_lock);
    for (td__control *c = open_controls; c; c = c->next)
        if (c->mine->pid == getpid() && atomic_load(&c->mine->state) == TD_SLOT_RUNNING)
            atomic_store(&c->mine->state, TD_SLOT_EXITED);
    pthread_mutex_unlock(&open_lock);
}

static void enlist(td__control *c)
{
    static bool registered;
    pthread_mutex_lock(&open_lock);
    c->next = open_controls;
    open_controls = c;
    if (!registered)
        registered = atexit(leave_word) == 0;
    pthread_mutex_unlock(&open_lock);
}

static void delist(td__control *c)
{
    pthread_mutex_lock(&open_lock);
    for (td__control **at = &open_controls; *at; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            break;
        }
    pthread_mutex_unlock(&open_lock);
}

static bool seen_stopped(td__control *c, int i, bool stopped)
{
    double now = td__now();
    if (!stopped || now - c->last_tick > 0.25)   /* we ourselves have not been running: begin anew */
        c->stopped_since[i] = 0;
    if (!stopped)
        return false;
    if (c->stopped_since[i] == 0)
        c->stopped_since[i] = now;
    return now - c->stopped_since[i] >= STOPPED_FOR;
}

/* Has it done its part where we wait? With MPI, and on devices, entering a collective is not yet having taken part in it. */
static bool is_here(td__control *c, const td__slot *slot, const td_coll *coll, uint64_t step)
{
    if (coll->device.kind == TD_CUDA)
        return coll->turn && atomic_load(&slot->device_passed) >= coll->turn;
    return atomic_load(&slot->step) >= step && !(c->comm->backend->on_thread && atomic_load(&slot->inside));
}

static int check_peer(td__control *c, int i, const td_coll *coll, uint64_t step)
{
    td__slot *slot = &c->slot[i];
    int state = atomic_load(&slot->state);
    bool here = is_here(c, slot, coll, step);
    if (slot->pid == 0)
        return 0;
    if (state == TD_SLOT_FINISHED || state == TD_SLOT_FAILED)
        return here ? 0 : td__verdict_peer(c, i, TD_PEER_FINISHED, coll);
    if (c->head->blind)
        return state == TD_SLOT_EXITED && !here ? td__verdict_peer(c, i, TD_PEER_EXITED, coll) : 0;
    uint64_t started = slot->started;
    long threads = 1;
    char letter = process_state(slot->pid, &started, &threads);
    bool gone = letter == '\0' || letter == 'X' || (letter == 'Z' && threads <= 1) || started != slot->started;
    state = atomic_load(&slot->state);           /* it may have said goodbye between the two looks */
    if (state == TD_SLOT_EXITED)
        return here ? 0 : td__verdict_peer(c, i, TD_PEER_EXITED, coll);
    if (gone && state == TD_SLOT_FINISHED)
        return here ? 0 : td__verdict_peer(c, i, TD_PEER_FINISHED, coll);
    if (gone)
        return td__verdict_peer(c, i, TD_PEER_DIED, coll);
    if (seen_stopped(c, i, letter == 'T' && !here))
        return td__verdict_peer(c, i, TD_PEER_STOPPED, coll);
    return 0;
}

/* Of a rank that a message is waited for from, or to: has it died or been stopped? What one that ended otherwise has left is point.c's to look at. */
int td__control_check_peer(td__control *c, int i, const td_coll *waiting)
{
    td__slot *slot = &c->slot[i];
    if (slot->pid == 0 || c->head->blind || atomic_load(&slot->state) != TD_SLOT_RUNNING)
        return 0;
    uint64_t started = slot->started;
    long threads = 1;
    char letter = process_state(slot->pid, &started, &threads);
    bool gone = letter == '\0' || letter == 'X' || (letter == 'Z' && threads <= 1) || started != slot->started;
    if (gone && atomic_load(&slot->state) == TD_SLOT_RUNNING)
        return td__verdict_peer(c, i, TD_PEER_DIED, waiting);
    int code = !gone && seen_stopped(c, i, letter == 'T') ? td__verdict_peer(c, i, TD_PEER_STOPPED, waiting) : 0;
    c->last_tick = td__now();
    return code;
}

static int check_late(td__control *c, const td_coll *coll, uint64_t step)
{
    bool device = coll->device.kind == TD_CUDA;
    for (int i = 0; i < c->n; i++)
        if (i != c->me && (device ? atomic_load(&c->slot[i].device_calls) < coll->turn : atomic_load(&c->slot[i].step) < step))
            return td__verdict_peer(c, i, TD_PEER_LATE, coll);
    return td__verdict_peer(c, -1, TD_PEER_LATE, coll);
}

int td__control_check(td__control *c, const td_coll *coll, double since)
{
    int code = td__verdict_take(c);
    uint64_t step = atomic_load(&c->mine->step);
    for (int k = 0; k < c->n - 1 && k < CHECKED_PER_TICK && !code; k++) {
        c->next_check = (c->next_check + 1) % c->n;
        if (c->next_check == c->me)
            c->next_check = (c->next_check + 1) % c->n;
        code = check_peer(c, c->next_check, coll, step);
    }
    c->last_tick = td__now();
    if (!code && c->last_tick - since > c->timeout)
        code = check_late(c, coll, step);
    return code;
}

/* ---- meeting ------------------------------------------------------------------------------------------------------------------ */

static inline bool reached(td__control *c)
{
    return (int32_t)(atomic_load_explicit(&c->head->arrivals, memory_order_acquire) - c->target) >= 0;
}

/* A moment of plain spinning; then each look offers the core to others: when the rank that is waited for has none of its own, spinning
 * would only keep it away. */
static bool spin(td__control *c)
{
    if (!c->spin_ns)
        return reached(c);
    int64_t begun = td__now_ns();
    do {
        for (int i = 0; i < 64; i++) {
            if (reached(c))
                return true;
            RELAX();
        }
    } while (td__now_ns() - begun < SPIN_NS);
    do {
        sched_yield();
        if (reached(c))
            return true;
    } while (td__now_ns() - begun < c->spin_ns);
    return false;
}

static int sleep_until_reached(td__control *c, const td_coll *coll)
{
    td__head *head = c->head;
    double since = td__now();
    c->last_tick = since;
    int code = 0;
    while (!code) {
        atomic_fetch_add(&head->sleepers, 1);
        uint32_t seen = atomic_load(&head->arrivals);
        bool there = (int32_t)(seen - c->target) >= 0;
        if (!there && !atomic_load(&head->verdict))
            td__futex_sleep(&head->arrivals, seen, TICK_NS);
        atomic_fetch_sub(&head->sleepers, 1);
        if (there || reached(c))
            return 0;
        if (td__now() - c->last_tick >= 0.9e-9 * TICK_NS || atomic_load(&head->verdict))
            code = td__control_check(c, coll, since);
    }
    return code;
}

int td__control_meet(td__control *c, const td_coll *coll)
{
    td__head *head = c->head;
    c->target += (uint32_t)c->n;
    atomic_fetch_add(&c->mine->step, 1);
    if (atomic_fetch_add(&head->arrivals, 1) + 1 == c->target) {
        if (atomic_load(&head->sleepers))
            td__futex_wake_all(&head->arrivals);
        return 0;
    }
    return spin(c) ? 0 : sleep_until_reached(c, coll);
}

/* ---- entering and leaving ------------------------------------------------------------------------------------------------------- */

void td__coll_fingerprint(const td_coll *coll, td_fingerprint *into)
{
    if (coll->whole)
        coll = coll->whole;
    *into = (td_fingerprint){ .seq = coll->seq, .count = coll->count, .kind = coll->kind, .dtype = (int32_t)coll->dtype,
                              .op = (int32_t)coll->op, .root = coll->root, .device = coll->device.kind == TD_CUDA ? TD_CUDA : TD_CPU,
                              .uneven = coll->uneven };
}

void td__control_enter(td__control *c, const td_coll *coll)
{
    td__entry *entry = td__control_entry(c, c->me, coll->turn);
    td__coll_fingerprint(coll, &entry->print);
    entry->pre = coll->pre, entry->post = coll->post, entry->arrived = coll->arrived;
    entry->in = entry->out = -1;
    entry->word = coll->word;
    entry->site = (uint64_t)(uintptr_t)coll->site;
    entry->label[0] = '\0';
    if (coll->label)
        snprintf(entry->label, sizeof entry->label, "%s", coll->label);
    atomic_store_explicit(&c->mine->inside, 1, memory_order_relaxed);
    atomic_store_explicit(&c->mine->calls, coll->turn, memory_order_release);
}

void td__control_leave(td__control *c)
{
    atomic_store_explicit(&c->mine->inside, 0, memory_order_relaxed);
}

void td__control_started(td__control *c, const td_coll *coll)
{
    td__device_entry *entry = &c->mine->device[coll->turn % TD_DEVICE_CALLS];
    td__coll_fingerprint(coll, &entry->print);
    entry->site = (uint64_t)(uintptr_t)coll->site;
    snprintf(entry->label, sizeof entry->label, "%s", coll->label ? coll->label : "");
    atomic_store_explicit(&c->mine->device_calls, coll->turn, memory_order_release);
}

/* ---- making ------------------------------------------------------------------------------------------------------------------------ */

static size_t slots_at(void)
{
    return (sizeof(td__head) + 4095) / 4096 * 4096;
}

static size_t data_at(int n)
{
    return (slots_at() + (size_t)n * sizeof(td__slot) + 4095) / 4096 * 4096;
}

size_t td__control_bytes(int n)
{
    return data_at(n) + (size_t)n * (2 * TD_INLINE + 2 * TD_STAGE);
}

void td__control_view(td__control *c, void *memory, int n)
{
    c->head = memory;
    c->slot = (td__slot *)((char *)memory + slots_at());
    c->data = (char *)memory + data_at(n);
    c->bytes = td__control_bytes(n);
}

/* The program is the first object that the loader lists. */
static int find_program(struct dl_phdr_info *info, size_t size, void *into)
{
    td__slot *slot = into;
    slot->exe_base = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && p->p_vaddr + p->p_memsz > slot->exe_size)
            slot->exe_size = p->p_vaddr + p->p_memsz;
    }
    return 1;
}

int td__control_attach(td__control *c, td_comm *comm, void *memory, int me, int n, int rank, const char *opening, td__head *above)
{
    *c = (td__control){ .me = me, .n = n, .whole = n == comm->size, .timeout = comm->timeout, .comm = comm, .spin_ns = 50 * 1000,
                        .next_check = me, .opening = opening, .above = above };
    td__control_view(c, memory, n);
    td__slot *slot = c->mine = &c->slot[me];
    c->stopped_since = td__calloc((size_t)n * sizeof *c->stopped_since);
    if (!c->stopped_since)
        return td__comm_fail(comm, TD_ERR_MEMORY, "no memory for what a communicator knows of its ranks");
    slot->rank = rank;
    uint64_t started;                          /* never 0 in the page beside a pid: another rank would take us for a process that is gone */
    td__process_identity((int)getpid(), &started);
    slot->started = started;
    atomic_thread_fence(memory_order_release);
    slot->pid = (int32_t)getpid();
    dl_iterate_phdr(find_program, slot);
    struct stat s;
    slot->exe_id = stat("/proc/self/exe", &s) == 0 ? (uint64_t)s.st_dev << 40 ^ (uint64_t)s.st_ino ^ (uint64_t)s.st_mtime << 20 : 0;
    CPU_ZERO(&slot->cpus);
    sched_getaffinity(0, sizeof slot->cpus, &slot->cpus);
    atomic_store(&slot->state, TD_SLOT_RUNNING);
    enlist(c);

    td_coll first = { .kind = TD_COLL_BARRIER, .seq = 0, .label = opening, .group = td__comm_group(comm), .site = td__site, .arrived = td__now() };
    td__control_enter(c, &first);
    int code = td__control_meet(c, &first);
    td__control_leave(c);
    cpu_set_t all;
    CPU_ZERO(&all);
    for (int i = 0; i < n; i++)
        CPU_OR(&all, &all, &c->slot[i].cpus);
    if (n > CPU_COUNT(&all))
        c->spin_ns = 0;
    return code;
}

void td__control_detach(td__control *c, bool well)
{
    if (!well)
        snprintf(c->mine->error, sizeof c->mine->error, "%s", td_error_message());
    atomic_store(&c->mine->state, well ? TD_SLOT_FINISHED : TD_SLOT_FAILED);
    if (atomic_load(&c->head->sleepers))
        td__futex_wake_all(&c->head->arrivals);
    delist(c);
    td__free(c->stopped_since);
    c->stopped_since = NULL;
    atomic_fetch_add(&c->head->left, 1);
}
