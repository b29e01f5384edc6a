/* tests/base/test_store.c: two processes meet; strangers, liars, garbage and idlers are turned away and delay nobody.
 */
#include <netdb.h>
#include "child.h"
#include <arpa/inet.h>
#include <base.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <store.h>
#include <store_wire.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <cmocka.h>

static const unsigned char secret[32] = { 1, 2, 3 }, other[32] = { 3, 2, 1 };
static char name[64];

static int begin(void **state)
{
    static int count;
    td_errors(TD_ERRORS_RETURN);
    snprintf(name, sizeof name, "unix:@tandem-test-%d-%d", (int)getpid(), count++);
    return 0;
}

static int end(void **state)
{
    assert_int_equal(td_memory().live_bytes, 0);
    assert_string_equal(td_error_message(), "");
    return 0;
}

static void set_get_add(td__store *s)
{
    static int calls;
    char text[64], counter[16];
    size_t size = sizeof text;
    snprintf(counter, sizeof counter, "n%d", calls++);
    assert_int_equal(td__store_set(s, "a", "hello", 5), 0);
    assert_int_equal(td__store_get(s, "a", text, &size, 0), 0);
    assert_int_equal(size, 5);
    assert_memory_equal(text, "hello", 5);
    assert_int_equal(td__store_set(s, "a", "", 0), 0);                       /* replaced by nothing, which is a value */
    size = sizeof text;
    assert_int_equal(td__store_get(s, "a", text, &size, 0), 0);
    assert_int_equal(size, 0);
    int64_t n = 0;
    assert_int_equal(td__store_add(s, counter, 5, &n), 0);
    assert_int_equal(n, 5);
    assert_int_equal(td__store_add(s, counter, -7, &n), 0);
    assert_int_equal(n, -2);
}

/* A bare container may have no /etc/hosts. */
static bool knows_localhost(void)
{
    struct addrinfo *found = NULL;
    bool yes = getaddrinfo("localhost", NULL, NULL, &found) == 0;
    if (yes)
        freeaddrinfo(found);
    return yes;
}

static void unix_and_tcp(void **state)
{
    const char *places[] = { name, "tcp:127.0.0.1:0", "tcp:localhost:0" };
    for (size_t i = 0; i < TD_COUNT(places) - !knows_localhost(); i++) {
        td__store_server *server = td__store_serve(places[i], secret);
        assert_non_null(server);
        td__store *s = td__store_connect(td__store_address(server), secret, 5);
        assert_non_null(s);
        set_get_add(s);
        char text[8];
        size_t size = sizeof text;
        assert_int_equal(td__store_server_get(server, "absent", text, &size), TD_ERR_STATE);
        td__store_set(s, "big", "0123456789", 10);
        assert_int_equal(td__store_server_get(server, "big", text, &size), TD_ERR_ARGUMENT);
        assert_int_equal(size, 10);
        td__store_set(s, "b", "xy", 2);
        size = sizeof text;
        assert_int_equal(td__store_server_get(server, "b", text, &size), 0);
        assert_memory_equal(text, "xy", 2);
        td__store_close(s);
        td__store_stop(server);
    }
    td__store_close(NULL);
    td__store_stop(NULL);
}

typedef struct {
    int calls;
    char key[32], value[32];
} told;

static int64_t note(void *user, const char *key, const void *value, size_t size)
{
    told *t = user;
    snprintf(t->key, sizeof t->key, "%s", key);
    snprintf(t->value, sizeof t->value, "%.*s", (int)size, (const char *)value);
    return 100 + ++t->calls;
}

/* Messages: heard in order, answered, kept nowhere; without a listener a sentence. */
static void telling(void **state)
{
    (void)state;
    td__store_server *server = td__store_serve("tcp:127.0.0.1:0", secret);
    assert_non_null(server);
    td__store *s = td__store_connect(td__store_address(server), secret, 5);
    assert_non_null(s);
    char address[64];
    assert_string_equal(td__store_own_address(s, address, sizeof address), "127.0.0.1");
    int64_t answer = 0;
    assert_int_equal(td__store_tell(s, "agent", "hello", 5, &answer), TD_ERR_STATE);
    assert_non_null(strstr(td_error_message(), "nobody listens to \"agent\""));
    td_error_clear();
    told heard = { 0 };
    td__store_listen(server, note, &heard);
    assert_int_equal(td__store_tell(s, "agent/7", "hello", 5, &answer), 0);
    assert_int_equal(answer, 101);
    assert_string_equal(heard.key, "agent/7");
    assert_string_equal(heard.value, "hello");
    assert_int_equal(td__store_tell(s, "agent/8", "", 0, NULL), 0);
    assert_string_equal(heard.value, "");
    size_t size = 0;
    assert_int_equal(td__store_server_get(server, "agent/7", NULL, &size), TD_ERR_STATE);
    td__store_close(s);
    td__store_stop(server);
}

static void the_largest(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    td__store *s = td__store_connect(name, secret, 5);
    static unsigned char value[65537], back[65536];
    char key[257];
    for (size_t i = 0; i < sizeof value; i++)
        value[i] = (unsigned char)(i * 31 >> 3);
    memset(key, 'k', sizeof key);
    key[255] = '\0';
    assert_int_equal(td__store_set(s, key, value, 65536), 0);
    size_t size = sizeof back;
    assert_int_equal(td__store_get(s, key, back, &size, 0), 0);
    assert_int_equal(size, 65536);
    assert_memory_equal(back, value, 65536);
    /* what is too much is refused here, and the connection goes on */
    assert_int_equal(td__store_set(s, key, value, 65537), TD_ERR_ARGUMENT);
    td_error_clear();
    key[255] = 'k', key[256] = '\0';
    assert_int_equal(td__store_set(s, key, value, 1), TD_ERR_ARGUMENT);
    td_error_clear();
    assert_int_equal(td__store_set(s, "", value, 1), TD_ERR_ARGUMENT);
    td_error_clear();
    key[255] = '\0';
    size = 10;
    assert_int_equal(td__store_get(s, key, back, &size, 0), TD_ERR_ARGUMENT);
    td_error_clear();
    assert_int_equal(td__store_add(s, key, 1, NULL), TD_ERR_STATE);
    assert_non_null(strstr(td_error_message(), "holds no counter"));
    td_error_clear();
    set_get_add(s);
    td__store_close(s);
    td__store_stop(server);
}

static void child_sets(void *unused)
{
    td__store *s = td__store_connect(name, secret, 5);                       /* the server comes later */
    char text[16];
    size_t size = sizeof text;
    if (!s || td__store_get(s, "question", text, &size, 5) || size != 4 || memcmp(text, "why?", 4) != 0 ||
        td__store_set(s, "answer", "42", 2))
        printf("failed: %s\n", td_error_message());
    else
        printf("fine\n");
}

static void *serve_child(void *unused)
{
    nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
    td__store_server *server = td__store_serve(name, secret);
    td__store *s = td__store_connect(name, secret, 5);
    char text[16] = "";
    size_t size = sizeof text;
    td__store_set(s, "question", "why?", 4);
    int code = td__store_get(s, "answer", text, &size, 5);
    td__store_close(s);
    td__store_stop(server);
    return code == 0 && size == 2 && memcmp(text, "42", 2) == 0 ? NULL : "no answer";
}

static void two_processes(void **state)
{
    fflush(NULL);
    pid_t pid = fork();                        /* before there are threads */
    if (pid == 0)
        _exit(serve_child(NULL) ? 1 : 0);
    child_result r = child_run(child_sets, NULL);
    assert_string_equal(r.out, "fine\n");
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

static void *set_later(void *unused)
{
    td__store *s = td__store_connect(name, secret, 5);
    nanosleep(&(struct timespec){ .tv_nsec = 150000000 }, NULL);
    int code = td__store_set(s, "late", "value", 5);
    td__store_close(s);
    return code ? "set failed" : NULL;
}

static void waiting_and_deadlines(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    td__store *s = td__store_connect(name, secret, 5);
    pthread_t t;
    pthread_create(&t, NULL, set_later, NULL);
    char text[16];
    size_t size = sizeof text;
    double start = td__now();
    assert_int_equal(td__store_get(s, "late", text, &size, 10), 0);
    assert_memory_equal(text, "value", 5);
    assert_true(td__now() - start < 5);
    void *wrong;
    pthread_join(t, &wrong);
    assert_null(wrong);
    start = td__now();
    size = sizeof text;
    assert_int_equal(td__store_get(s, "never", text, &size, 0.2), TD_ERR_TIMEOUT);
    assert_true(td__now() - start >= 0.2 && td__now() - start < 5);
    assert_non_null(strstr(td_error_message(), "nobody set \"never\" within 0.2 s"));
    td_error_clear();
    set_get_add(s);                            /* the connection is fine after a deadline */
    td__store_close(s);
    td__store_stop(server);
}

static void *adder(void *shared)
{
    td__store *s = shared ? shared : td__store_connect(name, secret, 5);
    for (int i = 0; i < 200; i++)
        if (!s || td__store_add(s, "sum", i % 2 ? 3 : -1, NULL))
            return "add failed";
    if (!shared)
        td__store_close(s);
    return NULL;
}

static void four_threads_add(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    td__store *s = td__store_connect(name, secret, 5);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, adder, i < 2 ? s : NULL);                /* two share a connection */
    for (int i = 0; i < 4; i++) {
        void *wrong;
        pthread_join(t[i], &wrong);
        assert_null(wrong);
    }
    int64_t sum = 0;
    assert_int_equal(td__store_add(s, "sum", 0, &sum), 0);
    assert_int_equal(sum, 4 * 200);
    td__store_close(s);
    td__store_stop(server);
}

static void wrong_secrets(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    assert_null(td__store_connect(name, other, 5));
    assert_int_equal(td_error_pending(), TD_ERR_PEER);
    assert_non_null(strstr(td_error_message(), "does not know this job's secret"));
    td_error_clear();
    td__store *s = td__store_connect(name, secret, 5);
    set_get_add(s);
    td__store_close(s);
    assert_null(td__store_serve(name, secret));                              /* the name is taken */
    assert_int_equal(td_error_pending(), TD_ERR_IO);
    td_error_clear();
    td__store_stop(server);
    assert_null(td__store_connect(name, secret, 0.1));
    assert_int_equal(td_error_pending(), TD_ERR_IO);
    td_error_clear();
    const char *nonsense[] = { "", "unix:x", "tcp:", "tcp:localhost", "tcp::1", "http://x", NULL };
    for (size_t i = 0; i < TD_COUNT(nonsense); i++) {
        assert_null(td__store_connect(nonsense[i], secret, 0.1));
        assert_true(td_error_pending() < 0);
        td_error_clear();
    }
}

/* ---- strangers ---- */

static int raw_connect(void)
{
    td__store_place place;
    char why[100];
    assert_int_equal(td__store_resolve(name, &place, why, sizeof why), 0);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&place.address, place.size), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ .tv_sec = 5 }, sizeof(struct timeval));
    return fd;
}

/* True when the server hangs up; false when 5 s pass. */
static bool hangs_up(int fd)
{
    char byte[256];
    ssize_t n;
    while ((n = recv(fd, byte, sizeof byte, 0)) > 0)
        ;
    bool gone = n == 0 || errno == ECONNRESET;
    close(fd);
    return gone;
}

/* A stranger that knows the secret but not the manners: up to the first frame. */
static int raw_ready(td__store_session *session)
{
    int fd = raw_connect();
    unsigned char hello[TD__STORE_HELLO] = TD__STORE_HELLO_TEXT, got[TD__STORE_CHALLENGE], proof[TD__STORE_PROOF];
    assert_int_equal(send(fd, hello, sizeof hello, 0), sizeof hello);
    assert_int_equal(recv(fd, got, sizeof got, MSG_WAITALL), sizeof got);
    td__store_proof(secret, TD__STORE_CLIENT, hello + TD__STORE_MAGIC, got, proof);
    assert_int_equal(send(fd, proof, sizeof proof, 0), sizeof proof);
    *session = (td__store_session){ .me = TD__STORE_CLIENT };
    td__store_proof(secret, TD__STORE_KEY, hello + TD__STORE_MAGIC, got, session->key);
    return fd;
}

static void garbage(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    td__store *s = td__store_connect(name, secret, 5);
    unsigned char bytes[4096], got[TD__STORE_CHALLENGE];
    unsigned seed = 1;
    for (int round = 0; round < 50; round++) { /* nonsense of many lengths, from the first byte on */
        int fd = raw_connect();
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (unsigned char)((seed = seed * 1664525u + 1013904223u) >> 24);
        send(fd, bytes, TD__STORE_HELLO + (size_t)round * 80, MSG_NOSIGNAL);
        assert_true(hangs_up(fd));
    }
    int fd = raw_connect();                    /* a right greeting and a wrong proof */
    memcpy(bytes, TD__STORE_HELLO_TEXT, TD__STORE_MAGIC);
    send(fd, bytes, TD__STORE_HELLO, MSG_NOSIGNAL);
    assert_int_equal(recv(fd, got, sizeof got, MSG_WAITALL), sizeof got);
    send(fd, bytes, TD__STORE_PROOF, MSG_NOSIGNAL);
    assert_true(hangs_up(fd));
    fd = raw_connect();                        /* the server's own proof sent back */
    send(fd, bytes, TD__STORE_HELLO, MSG_NOSIGNAL);
    assert_int_equal(recv(fd, got, sizeof got, MSG_WAITALL), sizeof got);
    send(fd, got + TD__STORE_NONCE, TD__STORE_PROOF, MSG_NOSIGNAL);
    assert_true(hangs_up(fd));
    set_get_add(s);
    td__store_close(s);
    td__store_stop(server);
}

static void bad_frames(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    td__store *s = td__store_connect(name, secret, 5);
    static unsigned char bytes[TD__STORE_FRAME_MAX];
    td__store_session session;
    td__store_frame frame = { TD__STORE_SET, (const unsigned char *)"key", (const unsigned char *)"value", 3, 5 };
    for (int kind = 0; kind < 7; kind++) {
        int fd = raw_ready(&session);
        size_t n = td__store_pack(&session, &frame, bytes);
        size_t sent = n;
        if (kind == 0)
            bytes[n - 1] ^= 1;                 /* HMAC */
        else if (kind == 1)
            bytes[10] ^= 1;                    /* key */
        else if (kind == 2)
            bytes[7] = 1;                      /* a value of 16 MiB */
        else if (kind == 3)
            bytes[0] = 99;                     /* no such op */
        else if (kind == 4)                    /* an answer instead of a question */
            n = sent = td__store_pack(&session, &(td__store_frame){ .op = TD__STORE_DONE, .key = (const void *)"k", .key_size = 1 }, bytes);
        else if (kind == 5)                    /* the same frame twice: the sequence number is wrong */
            memcpy(bytes + n, bytes, n), sent = 2 * n;
        else                                   /* no key */
            sent = td__store_pack(&session, &(td__store_frame){ .op = TD__STORE_SET, .value = (const void *)"v", .value_size = 1 }, bytes);
        send(fd, bytes, sent, MSG_NOSIGNAL);
        if (!hangs_up(fd))
            fail_msg("kind %d was not dropped", kind);
    }
    char text[8];
    size_t size = sizeof text;
    assert_int_equal(td__store_get(s, "key", text, &size, 0), 0);            /* kind 5's first frame was good */
    td__store_close(s);
    td__store_stop(server);
}

static void idlers_and_the_half_dead(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    int idle[300];                             /* more than the server keeps unproven: the oldest go */
    for (size_t i = 0; i < TD_COUNT(idle); i++)
        idle[i] = raw_connect();
    td__store *s = td__store_connect(name, secret, 5);
    assert_non_null(s);
    set_get_add(s);
    assert_true(hangs_up(idle[0]));
    td__store_session session;
    static unsigned char bytes[TD__STORE_FRAME_MAX];
    unsigned char wait[8];
    td__store_put_i64(wait, 1000000);
    td__store_frame frame = { TD__STORE_GET, (const void *)"never", wait, 5, 8 };
    int parked = raw_ready(&session);
    size_t n = td__store_pack(&session, &frame, bytes);
    send(parked, bytes, n, MSG_NOSIGNAL);
    close(parked);                             /* gone while it waits */
    int half = raw_ready(&session);            /* gone in the middle of a frame */
    n = td__store_pack(&session, &frame, bytes);
    send(half, bytes, n / 2, MSG_NOSIGNAL);
    close(half);
    set_get_add(s);
    td__store_set(s, "never", "x", 1);
    set_get_add(s);
    for (size_t i = 1; i < TD_COUNT(idle); i++)
        close(idle[i]);
    td__store_close(s);
    td__store_stop(server);
}

static void *stop_soon(void *server)
{
    nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
    td__store_stop(server);
    return NULL;
}

static void the_server_goes(void **state)
{
    td__store_server *server = td__store_serve(name, secret);
    td__store *s = td__store_connect(name, secret, 5);
    pthread_t t;
    pthread_create(&t, NULL, stop_soon, server);
    char text[8];
    size_t size = sizeof text;
    assert_int_equal(td__store_get(s, "never", text, &size, 20), TD_ERR_PEER);          /* at once, not after 20 s */
    td_error_clear();
    pthread_join(t, NULL);
    assert_int_equal(td__store_set(s, "a", "b", 1), TD_ERR_STATE);
    td_error_clear();
    td__store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(two_processes, begin, end),
        cmocka_unit_test_setup_teardown(unix_and_tcp, begin, end),
        cmocka_unit_test_setup_teardown(telling, begin, end),
        cmocka_unit_test_setup_teardown(the_largest, begin, end),
        cmocka_unit_test_setup_teardown(waiting_and_deadlines, begin, end),
        cmocka_unit_test_setup_teardown(four_threads_add, begin, end),
        cmocka_unit_test_setup_teardown(wrong_secrets, begin, end),
        cmocka_unit_test_setup_teardown(garbage, begin, end),
        cmocka_unit_test_setup_teardown(bad_frames, begin, end),
        cmocka_unit_test_setup_teardown(idlers_and_the_half_dead, begin, end),
        cmocka_unit_test_setup_teardown(the_server_goes, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
