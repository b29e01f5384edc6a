/* comm/bootstrap.c: how the ranks of one host find each other.
 *
 * Local rank 0 listens on an abstract Unix socket whose name is a keyed hash of the job's name (the key is our launcher's secret, if
 * there is one); the others try to connect until the deadline. Both ends look at the peer's user id. Every rank sends a hello with the
 * descriptor of its arena; when all are there, rank 0 sends each of them the descriptors of the control memory and of all arenas. Abstract
 * sockets and memfds vanish with their last owner: a killed job leaves nothing to unlink and nothing that could be mistaken for this one's.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sodium.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "control.h"

enum { FDS_PER_MESSAGE = 200, PROTOCOL = 1 };

typedef struct {
    char     magic[8];
    uint32_t protocol, generation;             /* generation: the how many-th td_init of this process                          */
    int32_t  pid, rank, size, local_rank, local_size;
    uint64_t control_bytes;
    uint32_t has_arena;
} hello;

typedef struct {
    uint32_t failed, first, count;             /* which arenas' descriptors this message carries                              */
    char     text[400];
} reply;

typedef struct {
    const td__world *world;
    double   end, timeout;
    hello    mine;
    struct sockaddr_un address;
    socklen_t address_size;
    char    *error;
    size_t   error_size;
} meeting;

TD_PRINTF(3, 4) static int complain(meeting *m, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(m->error, m->error_size, format, args);
    va_end(args);
    return code;
}

static void name_socket(meeting *m)
{
    unsigned char hash[16];
    char text[256], hex[2 * sizeof hash + 1];
    const td__world *w = m->world;
    int n = snprintf(text, sizeof text, "tandem bootstrap %d\n%lu\n%s", PROTOCOL, (unsigned long)geteuid(), w->job);
    crypto_generichash(hash, sizeof hash, (unsigned char *)text, (unsigned long long)n, w->has_secret ? w->secret : NULL,
                       w->has_secret ? sizeof w->secret : 0);
    sodium_bin2hex(hex, sizeof hex, hash, sizeof hash);
    m->address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    n = snprintf(m->address.sun_path + 1, sizeof m->address.sun_path - 1, "tandem-%s", hex);
    m->address_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

/* Is the other end a process of our own user? */
static bool own_user(int fd, int *pid)
{
    struct ucred who;
    socklen_t size = sizeof who;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 || who.uid != geteuid())
        return false;
    *pid = (int)who.pid;
    return true;
}

static int wait_for(meeting *m, int fd, short events)
{
    double left = m->end - td__now();
    struct pollfd p = { fd, events, 0 };
    int n = poll(&p, 1, left <= 0 ? 0 : left > 1 ? 1000 : (int)(left * 1000) + 1);
    return n > 0 ? 1 : td__now() >= m->end ? -1 : 0;
}

static ssize_t send_with(int fd, const void *data, size_t size, const int *fds, int count)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(FDS_PER_MESSAGE * sizeof(int))];
    } control;
    struct iovec part = { (void *)data, size };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
    if (count) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)count * sizeof(int));
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL);
}

/* Descriptors beyond `most` are closed; *count says how many have come. */
static ssize_t receive_with(int fd, void *data, size_t size, int *fds, int most, int *count)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(FDS_PER_MESSAGE * sizeof(int))];
    } control;
    struct iovec part = { data, size };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room };
    ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    *count = 0;
    if (n < 0)
        return n;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int got = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < got; i++) {
            int one;
            memcpy(&one, CMSG_DATA(c) + (size_t)i * sizeof one, sizeof one);
            if (*count < most)
                fds[(*count)++] = one;
            else
                close(one);
        }
    }
    return n;
}

/* ---- local rank 0 ---------------------------------------------------------------------------------------------------------------- */

typedef struct { int *fd, *pid, *arena; int n; bool blind; } guests;

static int listen_here(meeting *m, int *listener)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return complain(m, TD_ERR_IO, "td_init: no Unix socket can be made (%s)", strerror(errno));
    /* the name is taken for a moment when the job before this one in these processes has not quite ended */
    while (bind(fd, (struct sockaddr *)&m->address, m->address_size) != 0) {
        if (errno != EADDRINUSE || td__now() > m->end) {
            int e = errno;
            close(fd);
            return complain(m, TD_ERR_LAUNCH, "td_init: job %s cannot meet on this host: %s", m->world->job,
                            e == EADDRINUSE ? "another job has the same name, or two ranks both are local rank 0" : strerror(e));
        }
        nanosleep(&(struct timespec){ 0, 2000000 }, NULL);
    }
    if (listen(fd, 512) != 0) {
        int e = errno;
        close(fd);
        return complain(m, TD_ERR_IO, "td_init: the ranks' socket cannot be opened (%s)", strerror(e));
    }
    *listener = fd;
    return 0;
}

static int check_hello(meeting *m, const hello *h, const guests *g)
{
    const hello *me = &m->mine;
    if (memcmp(h->magic, me->magic, sizeof h->magic) != 0 || h->protocol != me->protocol || h->control_bytes != me->control_bytes)
        return complain(m, TD_ERR_LAUNCH, "td_init: ranks of job %s run different versions of Tandem", m->world->job);
    if (h->size != me->size || h->local_size != me->local_size)
        return complain(m, TD_ERR_LAUNCH, "td_init: rank %d believes in %d ranks, %d on this host; rank %d in %d, %d", h->rank, h->size,
                        h->local_size, me->rank, me->size, me->local_size);
    if (h->generation != me->generation)
        return complain(m, TD_ERR_MISMATCH, "td_init: rank %d calls it for the %u. time and rank %d for the %u. time", h->rank,
                        h->generation, me->rank, me->generation);
    if (h->local_rank <= 0 || h->local_rank >= g->n || g->fd[h->local_rank] >= 0)
        return complain(m, TD_ERR_LAUNCH, "td_init: two ranks of job %s both are local rank %d", m->world->job, h->local_rank);
    return 0;
}

static int welcome(meeting *m, guests *g, int fd)
{
    hello h;
    int arena = -1, count = 0, pid, ready = 0;
    while ((ready = wait_for(m, fd, POLLIN)) == 0)
        ;
    ssize_t n = ready < 0 ? -1 : receive_with(fd, &h, sizeof h, &arena, 1, &count);
    if (n != (ssize_t)sizeof h || !own_user(fd, &pid) || (int)h.has_arena != count) {
        close(fd);                             /* not one of us, or gone again: whoever is missing will be named */
        if (arena >= 0)
            close(arena);
        return 0;
    }
    int code = check_hello(m, &h, g);
    if (code) {
        reply r = { .failed = 1 };
        snprintf(r.text, sizeof r.text, "%s", m->error);
        send_with(fd, &r, sizeof r, NULL, 0);
        close(fd);
        if (arena >= 0)
            close(arena);
        return code;
    }
    g->fd[h.local_rank] = fd;
    g->pid[h.local_rank] = pid;
    g->blind |= pid != h.pid;                  /* it calls itself otherwise: another pid namespace                            */
    g->arena[h.local_rank] = arena;
    return 0;
}

static int missing(meeting *m, const guests *g)
{
    char list[200] = "";
    size_t used = 0;
    int absent = 0;
    for (int i = 1; i < g->n; i++)
        if (g->fd[i] < 0 && ++absent && used + 8 < sizeof list)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%d", used ? ", " : "", i);
    return complain(m, TD_ERR_TIMEOUT, "td_init: local rank%s %s (of %d on this host) of job %s did not come within %g s (TANDEM_TIMEOUT)",
                    absent > 1 ? "s" : "", list, g->n, m->world->job, m->timeout);
}

static int gather(meeting *m, guests *g)
{
    int listener = -1, code = listen_here(m, &listener), here = 1;
    if (code)
        return code;
    while (!code && here < g->n) {
        int ready = wait_for(m, listener, POLLIN);
        if (ready < 0)
            code = missing(m, g);
        int fd = ready > 0 ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd < 0)
            continue;
        code = welcome(m, g, fd);
        here = 1;
        for (int i = 1; i < g->n; i++)
            here += g->fd[i] >= 0;
    }
    close(listener);
    return code;
}

static int make_control(meeting *m, const guests *g, int *control)
{
    size_t bytes = m->mine.control_bytes;
    int fd = memfd_create("tandem-control", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 || posix_fallocate(fd, 0, (off_t)bytes) != 0) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        return complain(m, TD_ERR_MEMORY, "td_init: %zu KiB of shared memory for %d ranks cannot be had (%s)", bytes >> 10, g->n, strerror(e));
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        close(fd);
        return complain(m, TD_ERR_MEMORY, "td_init: %zu KiB of shared memory cannot be mapped (%s)", bytes >> 10, strerror(errno));
    }
    td__control view = { 0 };
    td__control_view(&view, memory, g->n);
    view.head->blind = g->blind;
    for (int i = 1; i < g->n; i++) {           /* a rank that dies before its first word is missed all the same */
        view.slot[i].pid = g->pid[i];
        td__process_identity(g->pid[i], &view.slot[i].started);
    }
    munmap(memory, bytes);
    *control = fd;
    return 0;
}

static int hand_out(meeting *m, const guests *g, int control)
{
    for (int i = 1; i < g->n; i++) {
        for (int first = 0; first < g->n; first += FDS_PER_MESSAGE - 1) {
            int count = g->n - first < FDS_PER_MESSAGE - 1 ? g->n - first : FDS_PER_MESSAGE - 1;
            int fds[FDS_PER_MESSAGE] = { control };
            for (int k = 0; k < count; k++)
                fds[1 + k] = g->arena[first + k];
            reply r = { .first = (uint32_t)first, .count = (uint32_t)count };
            if (send_with(g->fd[i], &r, sizeof r, fds, 1 + (m->mine.has_arena ? count : 0)) < 0)
                return complain(m, TD_ERR_PEER, "td_init: local rank %d (pid %d) died while the ranks met (%s)", i, g->pid[i], strerror(errno));
        }
    }
    return 0;
}

static void tell_failure(const meeting *m, const guests *g)
{
    reply r = { .failed = 1 };
    snprintf(r.text, sizeof r.text, "%s", m->error);
    for (int i = 1; i < g->n; i++)
        if (g->fd[i] >= 0)
            send_with(g->fd[i], &r, sizeof r, NULL, 0);
}

static int host(meeting *m, int mine, td__meeting *out)
{
    int n = m->mine.local_size;
    guests g = { td__alloc((size_t)n * sizeof(int)), td__calloc((size_t)n * sizeof(int)), out->arena, n, false };
    int code = g.fd && g.pid ? 0 : TD_ERR_MEMORY;
    for (int i = 0; i < n && !code; i++)
        g.fd[i] = -1;
    if (!code && mine >= 0)
        out->arena[0] = fcntl(mine, F_DUPFD_CLOEXEC, 0);
    if (!code)
        code = gather(m, &g);
    if (!code)
        code = make_control(m, &g, &out->control);
    if (!code)
        code = hand_out(m, &g, out->control);
    if (code && g.fd)
        tell_failure(m, &g);
    for (int i = 1; i < n && g.fd; i++)
        if (g.fd[i] >= 0)
            close(g.fd[i]);
    td__free(g.fd);
    td__free(g.pid);
    return code;
}

/* ---- the others ------------------------------------------------------------------------------------------------------------------- */

static int connect_to_host(meeting *m, int *out)
{
    long pause = 200 * 1000;
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), pid;
        if (fd < 0)
            return complain(m, TD_ERR_IO, "td_init: no Unix socket can be made (%s)", strerror(errno));
        if (connect(fd, (struct sockaddr *)&m->address, m->address_size) == 0) {
            if (!own_user(fd, &pid)) {
                close(fd);
                return complain(m, TD_ERR_LAUNCH, "td_init: the meeting point of job %s on this host belongs to another user", m->world->job);
            }
            *out = fd;
            return 0;
        }
        int e = errno;
        close(fd);
        if (e != ECONNREFUSED && e != EAGAIN && e != EINTR)
            return complain(m, TD_ERR_IO, "td_init: the meeting point of job %s cannot be reached (%s)", m->world->job, strerror(e));
        if (td__now() > m->end)
            return complain(m, TD_ERR_TIMEOUT, "td_init: local rank 0 (of %d on this host) of job %s did not come within %g s (TANDEM_TIMEOUT)",
                            m->mine.local_size, m->world->job, m->timeout);
        nanosleep(&(struct timespec){ 0, pause }, NULL);
        pause = pause < 10 * 1000 * 1000 ? pause * 2 : pause;
    }
}

static int take_reply(meeting *m, int fd, td__meeting *out, int *have)
{
    reply r;
    int fds[FDS_PER_MESSAGE], count, ready;
    while ((ready = wait_for(m, fd, POLLIN)) == 0)
        ;
    if (ready < 0)
        return complain(m, TD_ERR_TIMEOUT, "td_init: the %d ranks of job %s on this host did not meet within %g s (TANDEM_TIMEOUT)",
                        m->mine.local_size, m->world->job, m->timeout);
    ssize_t n = receive_with(fd, &r, sizeof r, fds, FDS_PER_MESSAGE, &count);
    r.text[sizeof r.text - 1] = '\0';
    int code = 0, expected = m->mine.has_arena ? 1 + (int)r.count : 1;
    if (n != (ssize_t)sizeof r)
        code = complain(m, TD_ERR_PEER, "td_init: local rank 0 of job %s died or gave up while the ranks met", m->world->job);
    else if (r.failed)
        code = complain(m, TD_ERR_PEER, "%s", r.text);
    else if (count != expected || r.first != (uint32_t)*have || r.count > (uint32_t)(m->mine.local_size - *have))
        code = complain(m, TD_ERR_MEMORY, "td_init: shared memory could not be handed over (%d of %d descriptors came; see ulimit -n)", count,
                        expected);
    for (int i = 0; i < count; i++) {
        if (!code && i == 0 && out->control < 0)
            out->control = fds[i];
        else if (!code && i > 0)
            out->arena[*have + i - 1] = fds[i];
        else
            close(fds[i]);
    }
    *have += code ? 0 : (int)r.count;
    return code;
}

static int visit(meeting *m, int mine, td__meeting *out)
{
    int fd = -1, have = 0, code = connect_to_host(m, &fd);
    if (code)
        return code;
    if (send_with(fd, &m->mine, sizeof m->mine, &mine, mine >= 0) != (ssize_t)sizeof m->mine)
        code = complain(m, TD_ERR_PEER, "td_init: local rank 0 of job %s died while the ranks met (%s)", m->world->job, strerror(errno));
    while (!code && have < m->mine.local_size)
        code = take_reply(m, fd, out, &have);
    close(fd);
    return code;
}

int td__bootstrap(const td__world *world, double timeout, size_t control_bytes, int mine, td__meeting *out, char *error, size_t error_size)
{
    static uint32_t generation;
    meeting m = { .world = world, .end = td__now() + timeout, .timeout = timeout, .error = error, .error_size = error_size };
    m.mine = (hello){ .magic = "TDHELLO", .protocol = PROTOCOL, .generation = ++generation, .pid = (int32_t)getpid(), .rank = world->rank, .size = world->size,
                      .local_rank = world->local_rank, .local_size = world->local_size, .control_bytes = control_bytes,
                      .has_arena = mine >= 0 };
    out->control = -1;
    out->arena = td__alloc((size_t)world->local_size * sizeof *out->arena);
    if (!out->arena || sodium_init() < 0)
        return complain(&m, TD_ERR_MEMORY, "td_init: no memory");
    for (int i = 0; i < world->local_size; i++)
        out->arena[i] = -1;
    name_socket(&m);
    int code = world->local_rank == 0 ? host(&m, mine, out) : visit(&m, mine, out);
    if (code) {
        for (int i = 0; i < world->local_size; i++)
            if (out->arena[i] >= 0)
                close(out->arena[i]);
        if (out->control >= 0)
            close(out->control);
        td__free(out->arena);
        out->arena = NULL;
    }
    return code;
}
