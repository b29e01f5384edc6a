/* base/store_client.c: the asking side of the meeting-point store. One call at a time on one connection.
 *
 * Every wait has a deadline. A connection on which a call broke off in the middle is of no more use, because the next
 * answer would be the wrong one: it is marked broken and every later call says so.
 */
#include "store_wire.h"
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct td__store {
    int fd;
    bool broken;
    double answer_s;
    pthread_mutex_t lock;                      /* threads may share a connection; they wait for each other */
    td__store_session session;
    char address[160];
    unsigned char frame[TD__STORE_FRAME_MAX];
};

static const double ANSWER_TIME = 30;          /* for what the server does at once; beyond it, it is stopped or lost */

/* ---- bytes, with a deadline ------------------------------------------------------------------------------------------------ */

typedef struct { double deadline; const td__store_patience *patience; } waiting;

static int wait_for(int fd, short events, const waiting *w)
{
    for (;;) {
        double left = w->deadline - td__now(), most = w->patience ? 50 : 1e9;
        struct pollfd p = { .fd = fd, .events = events };
        int n = poll(&p, 1, left <= 0 ? 0 : (int)fmin(ceil(left * 1000), most));
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return TD_ERR_IO;
        if (n == 0 && left <= 0)
            return TD_ERR_TIMEOUT;
        int enough = w->patience ? w->patience->ask(w->patience->of) : 0;
        if (enough)
            return enough;
    }
}

static int send_all(int fd, const unsigned char *bytes, size_t size, const waiting *w)
{
    while (size > 0) {
        ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            bytes += n;
            size -= (size_t)n;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            int code = wait_for(fd, POLLOUT, w);
            if (code)
                return code;
        } else if (errno != EINTR) {
            return TD_ERR_PEER;
        }
    }
    return 0;
}

static int receive_all(int fd, unsigned char *bytes, size_t size, const waiting *w)
{
    while (size > 0) {
        ssize_t n = recv(fd, bytes, size, MSG_DONTWAIT);
        if (n > 0) {
            bytes += n;
            size -= (size_t)n;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            int code = wait_for(fd, POLLIN, w);
            if (code)
                return code;
        } else if (n == 0 || errno != EINTR) {
            return TD_ERR_PEER;
        }
    }
    return 0;
}

/* ---- connecting ---------------------------------------------------------------------------------------------------------------- */

TD_PRINTF(3, 4) static int say(char *why, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(why, size, format, args);
    va_end(args);
    return 0;
}

/* A socket that is connected, or -1 with errno. */
static int try_connect(const td__store_place *place, double deadline)
{
    int fd = socket(place->family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    int error = connect(fd, (const struct sockaddr *)&place->address, place->size) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
        socklen_t size = sizeof error;
        if (wait_for(fd, POLLOUT, &(waiting){ deadline, NULL }) != 0)
            error = ETIMEDOUT;
        else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
            error = errno;
    }
    if (error == 0)
        return fd;
    close(fd);
    errno = error;
    return -1;
}

/* 0, or a negative code with the sentence in `why`. */
static int shake_hands(td__store *store, const unsigned char *secret, double deadline, char *why, size_t size)
{
    unsigned char hello[TD__STORE_HELLO], challenge[TD__STORE_CHALLENGE], proof[TD__STORE_PROOF];
    const unsigned char *mine = hello + TD__STORE_MAGIC, *theirs = challenge;
    const waiting w = { deadline, NULL };
    memcpy(hello, TD__STORE_HELLO_TEXT, TD__STORE_MAGIC);
    if (td__store_random(hello + TD__STORE_MAGIC))
        return say(why, size, "store %s: libsodium cannot start", store->address), TD_ERR_INTERNAL;
    int code = send_all(store->fd, hello, sizeof hello, &w);
    if (code == 0)
        code = receive_all(store->fd, challenge, sizeof challenge, &w);
    if (code == TD_ERR_TIMEOUT)
        return say(why, size, "store %s: the server did not answer in time", store->address), code;
    if (code)
        return say(why, size, "store %s: the server closed the connection before it proved who it is", store->address), code;
    td__store_proof(secret, TD__STORE_SERVER, mine, theirs, proof);
    if (!td__store_proof_equal(proof, challenge + TD__STORE_NONCE))
        return say(why, size, "store %s: the server does not know this job's secret: it belongs to another job", store->address), TD_ERR_MISMATCH;
    td__store_proof(secret, TD__STORE_CLIENT, mine, theirs, proof);
    td__store_proof(secret, TD__STORE_KEY, mine, theirs, store->session.key);
    store->session.me = TD__STORE_CLIENT;
    if (send_all(store->fd, proof, sizeof proof, &w))
        return say(why, size, "store %s: the server closed the connection", store->address), TD_ERR_PEER;
    return 0;
}

/* `patient`: the server may come later than its clients; until the deadline, nobody there is no failure. */
static td__store *open_store(const char *address, const unsigned char *secret, double timeout_s, bool patient, int *code, char *why, size_t size)
{
    char what[260];
    td__store_place place;
    *code = td__store_resolve(address, &place, what, sizeof what);
    if (*code)
        return say(why, size, "store %s", what), NULL;
    td__store *store = td__calloc(sizeof *store);
    if (!store) {
        *code = TD_ERR_MEMORY;
        return say(why, size, "store %s: no memory", address), NULL;
    }
    pthread_mutex_init(&store->lock, NULL);
    store->answer_s = ANSWER_TIME;
    snprintf(store->address, sizeof store->address, "%s", address);
    double deadline = td__now() + timeout_s;
    for (long pause_ns = 1000000;;) {
        store->fd = try_connect(&place, deadline);
        bool nobody = store->fd < 0 && (errno == ECONNREFUSED || errno == ENOENT || errno == EAGAIN || errno == EINTR);
        if (!patient || !nobody || td__now() >= deadline)
            break;
        nanosleep(&(struct timespec){ .tv_nsec = pause_ns }, NULL);
        if (pause_ns < 50000000)
            pause_ns *= 2;
    }
    if (store->fd < 0) {
        *code = TD_ERR_IO;
        say(why, size, "store %s: cannot connect within %g s: %s", address, timeout_s, strerror(errno));
    } else if (place.family == AF_UNIX && !td__store_same_user(store->fd)) {
        *code = TD_ERR_PEER;
        say(why, size, "store %s: the server belongs to another user", address);
    } else {
        if (place.family != AF_UNIX)
            td__store_tune(store->fd);
        *code = shake_hands(store, secret, deadline, why, size);
    }
    if (*code == 0)
        return store;
    td__store_close(store);
    return NULL;
}

td__store *td__store_connect(const char *address, const unsigned char secret[32], double timeout_s)
{
    char why[400] = "";
    int code = 0;
    td__store *store = open_store(address, secret, timeout_s, true, &code, why, sizeof why);
    if (!store && !td__pending_here())
        td__fail(code == TD_ERR_MISMATCH ? TD_ERR_PEER : code, "%s", why);
    return store;
}

td__store *td__store_try(const char *address, const unsigned char secret[32], double timeout_s, int *code, char *why, size_t size)
{
    return open_store(address, secret, timeout_s, false, code, why, size);
}

void td__store_close(td__store *store)
{
    if (!store)
        return;
    if (store->fd >= 0)
        close(store->fd);
    pthread_mutex_destroy(&store->lock);
    explicit_bzero(store->session.key, sizeof store->session.key);
    td__free(store);
}

/* ---- one question, one answer ------------------------------------------------------------------------------------------------------ */

/* The answer lies in store->frame until the next call. 0 when there is one, whatever it says; else how it failed. */
static int exchange(td__store *store, const td__store_frame *question, td__store_frame *answer, double wait_s, const td__store_patience *patience)
{
    if (store->broken)
        return TD_ERR_STATE;
    const waiting w = { td__now() + wait_s + store->answer_s, patience };
    size_t size = td__store_pack(&store->session, question, store->frame);
    int code = send_all(store->fd, store->frame, size, &w);
    if (code == 0)
        code = receive_all(store->fd, store->frame, TD__STORE_HEADER, &w);
    size = code ? 0 : td__store_frame_size(store->frame);
    if (size)
        code = receive_all(store->fd, store->frame + TD__STORE_HEADER, size - TD__STORE_HEADER, &w);
    if (code == 0 && size && td__store_unpack(&store->session, store->frame, answer))
        return 0;
    store->broken = true;
    return code ? code : TD_ERR_MISMATCH;
}

static int ask(td__store *store, const td__store_frame *question, td__store_frame *answer, double wait_s)
{
    int code = exchange(store, question, answer, wait_s, NULL);
    switch (code) {
    case 0:
        return 0;
    case TD_ERR_STATE:
        return td__fail(code, "store %s: the connection broke in an earlier call", store->address);
    case TD_ERR_TIMEOUT:
        return td__fail(code, "store %s: no answer for %g s: its process is stopped or cannot be reached", store->address, wait_s + store->answer_s);
    case TD_ERR_MISMATCH:
        return td__fail(TD_ERR_PEER, "store %s: the answer is not from the server that was greeted", store->address);
    default:
        return td__fail(TD_ERR_PEER, "store %s: the server closed the connection: it ended, or refused this process", store->address);
    }
}

static int check(td__store *store, const char *key, size_t value_size)
{
    if (!store)
        return td__fail(TD_ERR_ARGUMENT, "store: no connection");
    size_t length = key ? strlen(key) : 0;
    if (length == 0 || length > TD__STORE_KEY_MAX)
        return td__fail(TD_ERR_ARGUMENT, "store %s: a key has %zu bytes: expected 1 to %d", store->address, length, TD__STORE_KEY_MAX);
    if (value_size > TD__STORE_VALUE_MAX)
        return td__fail(TD_ERR_ARGUMENT, "store %s: the value of \"%s\" has %zu bytes: expected at most %d", store->address, key,
                        value_size, TD__STORE_VALUE_MAX);
    return 0;
}

static int refused(td__store *store, const char *key, td__store_op op, double timeout_s)
{
    switch (op) {
    case TD__STORE_LATE:
        return td__fail(TD_ERR_TIMEOUT, "store %s: nobody set \"%s\" within %g s", store->address, key, timeout_s);
    case TD__STORE_NO_COUNTER:
        return td__fail(TD_ERR_STATE, "store %s: \"%s\" holds no counter", store->address, key);
    case TD__STORE_NO_EAR:
        return td__fail(TD_ERR_STATE, "store %s: nobody listens to \"%s\"", store->address, key);
    case TD__STORE_FULL:
        return td__fail(TD_ERR_MEMORY, "store %s: there is no room for \"%s\"", store->address, key);
    default:
        return td__fail(TD_ERR_INTERNAL, "store %s: answer %d to a question about \"%s\"", store->address, (int)op, key);
    }
}

int td__store_set(td__store *store, const char *key, const void *value, size_t size)
{
    int code = check(store, key, size);
    if (code)
        return code;
    td__store_frame answer, question = { TD__STORE_SET, (const void *)key, value, strlen(key), size };
    pthread_mutex_lock(&store->lock);
    code = ask(store, &question, &answer, 0);
    if (code == 0 && answer.op != TD__STORE_DONE)
        code = refused(store, key, answer.op, 0);
    pthread_mutex_unlock(&store->lock);
    return code;
}

int td__store_get(td__store *store, const char *key, void *into, size_t *size, double timeout_s)
{
    int code = check(store, key, 0);
    if (code)
        return code;
    unsigned char wait_ms[8];
    timeout_s = fmin(fmax(timeout_s, 0), 1e9);
    td__store_put_i64(wait_ms, (int64_t)ceil(timeout_s * 1000));
    td__store_frame answer, question = { TD__STORE_GET, (const void *)key, wait_ms, strlen(key), sizeof wait_ms };
    pthread_mutex_lock(&store->lock);
    code = ask(store, &question, &answer, timeout_s);
    if (code == 0 && answer.op != TD__STORE_DONE)
        code = refused(store, key, answer.op, timeout_s);
    if (code == 0 && answer.value_size > *size)
        code = td__fail(TD_ERR_ARGUMENT, "store %s: the value of \"%s\" has %zu bytes and there is room for %zu", store->address, key,
                        answer.value_size, *size);
    if (code == 0) {
        if (answer.value_size)
            memcpy(into, answer.value, answer.value_size);
        *size = answer.value_size;
    }
    pthread_mutex_unlock(&store->lock);
    return code;
}

int td__store_add(td__store *store, const char *key, int64_t delta, int64_t *now)
{
    int code = check(store, key, 0);
    if (code)
        return code;
    unsigned char bytes[8];
    td__store_put_i64(bytes, delta);
    td__store_frame answer, question = { TD__STORE_ADD, (const void *)key, bytes, strlen(key), sizeof bytes };
    pthread_mutex_lock(&store->lock);
    code = ask(store, &question, &answer, 0);
    if (code == 0 && (answer.op != TD__STORE_DONE || answer.value_size != sizeof bytes))
        code = refused(store, key, answer.op, 0);
    if (code == 0 && now)
        *now = td__store_get_i64(answer.value);
    pthread_mutex_unlock(&store->lock);
    return code;
}

int td__store_tell(td__store *store, const char *key, const void *value, size_t size, int64_t *answer_value)
{
    int code = check(store, key, size);
    if (code)
        return code;
    td__store_frame answer, question = { TD__STORE_TELL, (const void *)key, value, strlen(key), size };
    pthread_mutex_lock(&store->lock);
    code = ask(store, &question, &answer, 0);
    if (code == 0 && (answer.op != TD__STORE_DONE || answer.value_size != 8))
        code = refused(store, key, answer.op, 0);
    if (code == 0 && answer_value)
        *answer_value = td__store_get_i64(answer.value);
    pthread_mutex_unlock(&store->lock);
    return code;
}

void td__store_answer_within(td__store *store, double seconds)
{
    pthread_mutex_lock(&store->lock);
    store->answer_s = seconds;
    pthread_mutex_unlock(&store->lock);
}

const char *td__store_where(const td__store *store)
{
    return store->address;
}

const char *td__store_own_address(td__store *store, char *into, size_t size)
{
    struct sockaddr_storage a;
    socklen_t length = sizeof a;
    if (getsockname(store->fd, (struct sockaddr *)&a, &length) != 0 || a.ss_family == AF_UNIX ||
        getnameinfo((struct sockaddr *)&a, length, into, (socklen_t)size, NULL, 0, NI_NUMERICHOST) != 0)
        into[0] = '\0';
    return into;
}

int td__store_ask(td__store *store, const td__store_frame *question, double wait_s, const td__store_patience *patience,
                  void (*use)(const td__store_frame *answer, void *of), void *of)
{
    td__store_frame answer;
    pthread_mutex_lock(&store->lock);
    int code = exchange(store, question, &answer, wait_s, patience);
    if (code == 0)
        use(&answer, of);
    pthread_mutex_unlock(&store->lock);
    return code;
}
