/* tests/base/test_meet.c: where a world meets, by made-up environments; foreign programs on the ports; the user's key; processes that meet.
 */
#include <arpa/inet.h>
#include <base.h>
#include <fcntl.h>
#include <meet.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define KEY "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100"
static char folder[64], path[128];

static int begin(void **state)
{
    (void)state;
    td_errors(TD_ERRORS_RETURN);
    snprintf(folder, sizeof folder, "/tmp/tandem-meet-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/sub/key", folder);
    setenv("TANDEM_KEY_FILE", path, 1);
    setenv("TANDEM_QUIET", "1", 1);
    unsetenv("TANDEM_SECRET");
    return 0;
}

static int end(void **state)
{
    (void)state;
    char sub[128];
    unlink(path);
    snprintf(sub, sizeof sub, "%s/sub", folder);
    rmdir(sub);
    assert_int_equal(rmdir(folder), 0);        /* nothing else is left */
    assert_int_equal(td_memory().live_bytes, 0);
    assert_string_equal(td_error_message(), "");
    return 0;
}

/* ---- where ------------------------------------------------------------------------------------------------------------------- */

#define STEP(rank, node, local, list) "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=" rank, "SLURM_NODEID=" node, "SLURM_LOCALID=" local, "SLURM_STEP_NODELIST=" list

typedef struct {
    const char *variables[12], *launcher;
    int rank, local_rank, local_size;          /* of 4                                                                    */
    bool serve, launchers, one_host;           /* expected …                                                              */
    const char *host;
    int port;
    const char *node, *sentence;               /* … or a part of the error                                                */
} row;

static const row rows[] = {
    /* ---- Slurm ---- */
    { { STEP("0", "0", "0", "n[08-09]") }, "slurm", 0, 0, 2, true, false, false, "n08", 0, "n08", NULL },
    { { STEP("1", "0", "1", "n[08-09]") }, "slurm", 1, 1, 2, false, false, false, "n08", 0, "n08", NULL },
    { { STEP("3", "1", "1", "n[08-09]") }, "slurm", 3, 1, 2, false, false, false, "n08", 0, "n09", NULL },
    { { STEP("2", "0", "0", "m3,n1") }, "slurm", 2, 0, 2, true, false, false, "m3", 0, "m3", NULL },          /* ranks in another order */
    { { STEP("3", "1", "0", "n0,n1"), "MASTER_ADDR=x" }, "pmi", 3, 0, 1, false, false, false, "n0", 0, "n1", NULL },
    { { STEP("3", "2", "0", "n0,n1") }, "slurm", 3, 0, 1, .sentence = "SLURM_NODEID is 2, but SLURM_STEP_NODELIST (n0,n1) names 2 hosts" },
    { { STEP("3", "1", "0", "n[0-2]"), "SLURM_STEP_NUM_NODES=2" }, "slurm", 3, 0, 1, .sentence = "SLURM_STEP_NUM_NODES is 2, but SLURM_STEP_NODELIST" },
    { { STEP("3", "1", "0", "n[0-") }, "slurm", 3, 0, 1, .sentence = "the node list \"n[0-\" lacks a number" },
    { { STEP("3", "x", "0", "n0,n1") }, "slurm", 3, 0, 1, .sentence = "SLURM_NODEID is \"x\"" },
    { { "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=3", "SLURM_STEP_NODELIST=n0,n1" }, "slurm", 3, 0, 1, .sentence = "SLURM_NODEID is not set" },
    { { "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=3" }, "slurm", 3, 0, 1, .sentence = "nothing says where the 4 ranks that slurm started meet" },
    /* ---- torchrun, by hand ---- */
    { { "MASTER_ADDR=n7", "MASTER_PORT=29500" }, "torchrun", 0, 0, 2, true, false, false, "n7", 0, "", NULL },
    { { "MASTER_ADDR=n7", "MASTER_PORT=29500" }, "torchrun", 3, 1, 2, false, false, false, "n7", 0, "", NULL },
    { { "MASTER_ADDR=n7", STEP("1", "1", "0", "n[7-8]") }, "torchrun", 3, 1, 2, false, false, false, "n7", 0, "", NULL },   /* under srun */
    { { NULL }, "torchrun", 3, 1, 2, .sentence = "set MASTER_ADDR to the host of rank 0" },
    { { "TANDEM_STORE=tcp:10.0.0.7:0", "MASTER_ADDR=n7" }, "torchrun", 0, 0, 2, true, false, false, "10.0.0.7", 0, "", NULL },
    { { "TANDEM_STORE=tcp:[fe80::1]:4711" }, "openmpi", 1, 0, 2, false, false, false, "fe80::1", 4711, "", NULL },
    { { "TANDEM_STORE=tcp:n7" }, "torchrun", 0, 0, 2, .sentence = "expected tcp:HOST:PORT" },
    { { "TANDEM_STORE=tcp::5" }, "torchrun", 0, 0, 2, .sentence = "expected tcp:HOST:PORT" },
    { { "TANDEM_STORE=tcp:n7:70000" }, "torchrun", 0, 0, 2, .sentence = "expected tcp:HOST:PORT" },
    { { "TANDEM_STORE=unix:@x", "MASTER_ADDR=n7" }, "torchrun", 0, 0, 2, true, false, false, "n7", 0, "", NULL },           /* of an outer tandem run */
    /* ---- ours ---- */
    { { "TANDEM_STORE=tcp:n7:4711", "MASTER_ADDR=x" }, "tandem", 0, 0, 2, false, true, false, "", 0, "", NULL },
    { { "MASTER_ADDR=n7" }, "tandem", 0, 0, 2, true, false, false, "n7", 0, "", NULL },
    /* ---- one host ---- */
    { { "MASTER_ADDR=n7" }, "torchrun", 0, 0, 4, true, false, true, "", 0, "", NULL },
    { { "MASTER_ADDR=n7" }, "torchrun", 1, 1, 4, false, false, true, "", 0, "", NULL },
    { { "MASTER_ADDR=n7" }, "torchrun", 1, -1, 0, false, false, false, "n7", 0, "", NULL },                 /* not known to be one */
};

static const row *current;

static const char *get(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < TD_COUNT(current->variables) && current->variables[i]; i++)
        if (strncmp(current->variables[i], name, length) == 0 && current->variables[i][length] == '=')
            return current->variables[i] + length + 1;
    return NULL;
}

static void where(void **state)
{
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        const row *r = current = &rows[i];
        char error[400] = "";
        td__world w = { .rank = r->rank, .size = 4, .local_rank = r->local_rank, .local_size = r->local_size, .job = "j", .has_secret = true };
        snprintf(w.launcher, sizeof w.launcher, "%s", r->launcher);
        td__meet_plan p;
        int code = td__meet_find(get, &w, &p, error, sizeof error);
        bool good = r->sentence ? code == TD_ERR_LAUNCH && strstr(error, r->sentence) && !p.nodes.n
                                : code == 0 && p.serve == r->serve && p.launcher == r->launchers && p.one_host == r->one_host &&
                                      !strcmp(p.host, r->host) && p.port == r->port && !strcmp(p.node, r->node);
        if (!good)
            print_error("row %zu: %d \"%s\", serve %d launcher %d one_host %d host %s:%d node %s\n", i, code, error, p.serve, p.launcher, p.one_host,
                        p.host, p.port, p.node);
        wrong += !good;
        td__nodelist_free(&p.nodes);
    }
    assert_int_equal(wrong, 0);
}

/* ---- the key ----------------------------------------------------------------------------------------------------------------- */

static void write_key(const char *text, mode_t mode)
{
    char sub[128];
    snprintf(sub, sizeof sub, "%s/sub", folder);
    mkdir(sub, 0700);
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fchmod(fd, mode) == 0);
    close(fd);
}

static void refused(const char *sentence)
{
    unsigned char secret[32];
    char error[1400] = "";
    assert_int_equal(td__key_secret("job", secret, error, sizeof error), TD_ERR_LAUNCH);
    if (!strstr(error, sentence))
        fail_msg("\"%s\", expected \"%s\"", error, sentence);
}

static void key(void **state)
{
    (void)state;
    char made[1024], error[1400];
    unsigned char a[32], b[32], c[32];
    struct stat s;
    refused("is missing: `tandem env --make-key` makes it, and it must be the same on all hosts");
    assert_int_equal(td__key_make(made, sizeof made, error, sizeof error), 0);
    assert_string_equal(made, path);
    assert_true(stat(path, &s) == 0 && (s.st_mode & 07777) == 0600 && s.st_size == 65);
    assert_int_equal(td__key_secret("job 1", a, error, sizeof error), 0);
    assert_int_equal(td__key_secret("job 1", b, error, sizeof error), 0);
    assert_int_equal(td__key_secret("job 2", c, error, sizeof error), 0);
    assert_memory_equal(a, b, 32);
    assert_memory_not_equal(a, c, 32);
    assert_int_equal(td__key_make(made, sizeof made, error, sizeof error), TD_ERR_LAUNCH);
    assert_non_null(strstr(error, "is there already and stays as it is"));
    assert_int_equal(td__key_secret("job 1", b, error, sizeof error), 0);
    assert_memory_equal(a, b, 32);

    write_key(KEY "\n", 0640);
    refused("has the permissions 0640, expected 0600");
    write_key(KEY "\n", 0604);
    refused("has the permissions 0604, expected 0600");
    write_key(KEY "00\n", 0600);
    refused("does not hold 64 hexadecimal digits");
    write_key("", 0600);
    refused("does not hold 64 hexadecimal digits");
    write_key("x" KEY, 0600);
    refused("does not hold 64 hexadecimal digits");
    write_key(KEY, 0400);                      /* without a newline, and as narrow as can be */
    assert_int_equal(td__key_secret("job 1", a, error, sizeof error), 0);
    setenv("TANDEM_SECRET", KEY, 1);           /* the same bytes from the environment */
    assert_int_equal(td__key_secret("job 1", b, error, sizeof error), 0);
    assert_memory_equal(a, b, 32);
    setenv("TANDEM_SECRET", "00", 1);
    refused("TANDEM_SECRET has 2 characters");
    unsetenv("TANDEM_SECRET");
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 4711, (gid_t)-1), 0);
        refused("belongs to user 4711, expected 0");
    }
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    refused("is no file");
    assert_int_equal(rmdir(path), 0);
}

/* ---- ports ------------------------------------------------------------------------------------------------------------------- */

static int listen_on(int port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)), 0);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 16) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A job whose ports are free now. */
static int free_job(char *job, size_t size)
{
    for (int i = 0;; i++) {
        snprintf(job, size, "test-%d-%d", (int)getpid(), i);
        int first = td__meet_port(job), good = 0;
        assert_true(first >= 20000 && first < 40000);
        for (int k = 0; k < TD__MEET_PORTS; k++) {
            int fd = listen_on(first + k);
            good += fd >= 0;
            close(fd);
        }
        if (good == TD__MEET_PORTS)
            return first;
    }
}

/* The first port has a program that says nothing, the second one that talks rubbish and hangs up, the third the store of another job. */
static void strangers(void **state)
{
    (void)state;
    const unsigned char ours[32] = { 1 }, theirs[32] = { 2 };
    char job[64], error[700] = "", address[64];
    int first = free_job(job, sizeof job), code = 0;
    int silent = listen_on(first), talker = listen_on(first + 1);
    assert_true(silent >= 0 && talker >= 0);
    pid_t rubbish = fork();
    if (rubbish == 0) {
        for (;;) {
            int fd = accept(talker, NULL, NULL);
            if (write(fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28) < 0)
                _exit(1);
            close(fd);
        }
    }
    snprintf(address, sizeof address, "tcp:127.0.0.1:%d", first + 2);
    td__store_server *other = td__store_serve(address, theirs);
    assert_non_null(other);
    td__store_server *server = td__meet_serve("127.0.0.1", 0, job, ours, true, &code, error, sizeof error);
    assert_non_null(server);
    snprintf(address, sizeof address, ":%d", first + 3);
    assert_non_null(strstr(td__store_address(server), address));
    double begun = td__now();
    td__store *store = td__meet_connect("127.0.0.1", 0, job, ours, true, 20, &code, error, sizeof error);
    assert_non_null(store);
    assert_true(td__now() - begun < 8);
    assert_int_equal(td__store_set(store, "a", "b", 1), 0);
    td__store_close(store);
    td__store_stop(server);

    /* and without ours there is nobody */
    store = td__meet_connect("127.0.0.1", 0, job, ours, true, 0.3, &code, error, sizeof error);
    assert_null(store);
    assert_int_equal(code, TD_ERR_TIMEOUT);
    assert_non_null(strstr(error, "host 127.0.0.1 did not answer on ports"));
    kill(rubbish, SIGKILL);
    waitpid(rubbish, NULL, 0);
    close(silent);
    close(talker);
    store = td__meet_connect("127.0.0.1", 0, job, ours, true, 0.3, &code, error, sizeof error);
    assert_null(store);
    assert_non_null(strstr(error, "another secret is known: is the key (`tandem env` shows its file) the same on all hosts?"));
    td__store_stop(other);
}

static void no_place(void **state)
{
    (void)state;
    const unsigned char ours[32] = { 1 };
    char job[64], error[700] = "";
    int first = free_job(job, sizeof job), code = 0, fd[TD__MEET_PORTS];
    for (int k = 0; k < TD__MEET_PORTS; k++)
        fd[k] = listen_on(first + k);
    assert_null(td__meet_serve("127.0.0.1", 0, job, ours, true, &code, error, sizeof error));
    assert_non_null(strstr(error, "are all taken by other programs"));
    assert_null(td__meet_serve("127.0.0.1", first, job, ours, true, &code, error, sizeof error));
    assert_non_null(strstr(error, "is taken by another program"));
    for (int k = 0; k < TD__MEET_PORTS; k++)
        close(fd[k]);
    assert_null(td__meet_serve("127.0.0.1", 0, job, ours, false, &code, error, sizeof error));
    assert_non_null(strstr(error, "127.0.0.1 is 127.0.0.1 on this host, which other hosts cannot reach"));
    assert_null(td__meet_connect("127.0.0.1", 0, job, ours, false, 20, &code, error, sizeof error));
    assert_non_null(strstr(error, "which other hosts cannot reach"));
    assert_null(td__meet_serve("192.0.2.1", 0, job, ours, true, &code, error, sizeof error));
    assert_non_null(strstr(error, "192.0.2.1 is 192.0.2.1 here, which is no address of this host"));
    assert_null(td__meet_serve("no-such-host.invalid", 0, job, ours, true, &code, error, sizeof error));
    assert_non_null(strstr(error, "host no-such-host.invalid has no address that is known here"));
    assert_null(td__meet_connect("no-such-host.invalid", 0, job, ours, true, 5, &code, error, sizeof error));
    assert_int_equal(code, TD_ERR_LAUNCH);
}

/* ---- processes that meet ----------------------------------------------------------------------------------------------------- */

typedef struct { int size, local_size, absent; const char *twice; } job;

/* 0: met, and knows the others. Twice in the same process: the second is a meeting of its own. */
static int body(int rank, const job *j)
{
    for (int round = 0; round < 2; round++) {
        td__world w = { .rank = rank, .size = j->size, .local_rank = -1, .launcher = "torchrun" };
        snprintf(w.job, sizeof w.job, "meet-%d", (int)getppid());
        if (j->twice && rank == 2)
            w.rank = 1;
        int code = td__meet(&w);
        if (code) {
            fprintf(stderr, "%s\n", td_error_message());
            return -code;
        }
        bool good = w.local_rank == rank && w.local_size == j->size && td__meeting_store();
        for (int i = 0; i < j->size && good; i++)
            good = td__meeting_peer(i) && *td__meeting_peer(i)->host && (i != rank || td__meeting_peer(i)->pid == (int)getpid());
        if (rank == 1 && round == 0)
            usleep(50000);                     /* others are in the next one while it is still in this */
        td__meet_end(true);
        if (!good)
            return 99;
    }
    td_error_clear();
    return td_memory().live_bytes == 0 ? 0 : 98;
}

static void start(const job *j, int *result, char *said, size_t size)
{
    int out[2];
    pid_t pid[8];
    assert_int_equal(pipe(out), 0);
    fflush(NULL);
    for (int r = 0; r < j->size; r++) {
        pid[r] = -1;
        if (r == j->absent)
            continue;
        pid[r] = fork();
        if (pid[r] == 0) {
            dup2(out[1], 2);
            _exit(body(r, j));
        }
    }
    close(out[1]);
    size_t used = 0;
    for (ssize_t n; used + 1 < size && (n = read(out[0], said + used, size - 1 - used)) > 0;)
        used += (size_t)n;
    said[used] = '\0';
    close(out[0]);
    for (int r = 0; r < j->size; r++) {
        int status = 0;
        if (pid[r] > 0)
            waitpid(pid[r], &status, 0);
        result[r] = WIFEXITED(status) ? WEXITSTATUS(status) : 97;
    }
}

static void met(void **state)
{
    (void)state;
    char said[4096];
    int result[8];
    setenv("TANDEM_SECRET", KEY, 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    start(&(job){ .size = 3, .absent = -1 }, result, said, sizeof said);
    if (result[0] || result[1] || result[2])
        fail_msg("%d %d %d: %s", result[0], result[1], result[2], said);
}

static void not_met(void **state)
{
    (void)state;
    char said[4096];
    int result[8];
    setenv("TANDEM_SECRET", KEY, 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    setenv("TANDEM_TIMEOUT", "0.5", 1);
    start(&(job){ .size = 3, .absent = 2 }, result, said, sizeof said);
    assert_int_equal(result[0], -TD_ERR_TIMEOUT);
    assert_non_null(strstr(said, "rank 2 of 3 did not come to the meeting at"));
    assert_non_null(strstr(said, "within 0.5 s (TANDEM_TIMEOUT)"));
    start(&(job){ .size = 3, .absent = 0 }, result, said, sizeof said);
    assert_int_equal(result[1], -TD_ERR_TIMEOUT);
    assert_non_null(strstr(said, "rank 1 of 3 cannot meet the others: host 127.0.0.1 did not answer on ports"));
    start(&(job){ .size = 3, .absent = -1, .twice = "yes" }, result, said, sizeof said);
    assert_non_null(strstr(said, "is rank 1 already"));
    unsetenv("TANDEM_SECRET");
    start(&(job){ .size = 2, .absent = -1 }, result, said, sizeof said);
    assert_int_equal(result[0], -TD_ERR_LAUNCH);
    assert_non_null(strstr(said, "has no way to meet the others without MPI: the key file"));
    assert_non_null(strstr(said, "tandem env --make-key"));
    unsetenv("TANDEM_TIMEOUT");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(where, begin, end), cmocka_unit_test_setup_teardown(key, begin, end),
        cmocka_unit_test_setup_teardown(strangers, begin, end), cmocka_unit_test_setup_teardown(no_place, begin, end),
        cmocka_unit_test_setup_teardown(met, begin, end), cmocka_unit_test_setup_teardown(not_met, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
