/* tests/comm/ranks.h: several ranks inside one test: forked processes that form a world over shared memory.
 *
 * run_ranks forks `size` children; each becomes a rank, runs `body` and ends with its result. A child that does not end in time is killed (by
 * its pid) and counts as hung. What children want to tell (sentences, hashes, times) they write into a page shared with the parent.
 */
#ifndef RANKS_H
#define RANKS_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include <comm_room.h>

enum { MAX_RANKS = 16, HUNG = 1000, KILLED = 2000 };

typedef struct {
    struct {
        _Atomic int ready;                     /* whatever the test uses it for */
        _Atomic int pid;
        double   at, told;                     /* when something happened; when the rank was told */
        int      error;
        uint64_t hash;
        char     sentence[1536];
    } rank[MAX_RANKS];
} shared_page;

static shared_page *shared;

typedef int rank_body(int rank, int size, void *arg);

/* In a child: a failed expectation ends the rank with code 99. */
#define EXPECT(what)                                                                                \
    do {                                                                                            \
        if (!(what)) {                                                                              \
            fprintf(stderr, "rank %d: %s:%d: not so: %s (%s)\n", td__world_now()->rank, __FILE__,   \
                    __LINE__, #what, td_error_message());                                           \
            _exit(99);                                                                              \
        }                                                                                           \
    } while (0)

static inline td__world ranks_world(int rank, int size, const char *job)
{
    td__world w = { .rank = rank, .size = size, .local_rank = rank, .local_size = size, .launcher = "tandem" };
    snprintf(w.job, sizeof w.job, "%s", job);
    return w;
}

static inline int child(int rank, int size, const char *job, rank_body *body, void *arg)
{
    td_errors(TD_ERRORS_RETURN);
    td__world w = ranks_world(rank, size, job);
    td__world_set(&w);
    atomic_store(&shared->rank[rank].pid, (int)getpid());
    EXPECT(td__comm_open_world(NULL, NULL) == 0);
    int code = body(rank, size, arg);
    td__comm_close_world(!td__had_error());
    td__scope_close_root();
    if (!code && !td__had_error()) {
        EXPECT(td_memory().live_tensors == 0);
        EXPECT(td_memory().live_bytes == 0);
    }
    return code;
}

/* results[r]: exit code, KILLED + signal, or HUNG */
static inline void run_ranks_as(const char *job, int size, rank_body *body, void *arg, double limit, int *results)
{
    if (!shared)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(shared, 0, sizeof *shared);
    fflush(NULL);
    pid_t pid[MAX_RANKS];
    for (int r = 0; r < size; r++) {
        pid[r] = fork();
        assert_true(pid[r] >= 0);
        if (pid[r] == 0) {
            int code = child(r, size, job, body, arg);
            fflush(NULL);
            exit(code);
        }
    }
    double end = td__now() + limit;
    for (int r = 0; r < size; r++)
        results[r] = HUNG;
    for (int left = size; left > 0 && td__now() < end;) {
        for (int r = 0; r < size; r++) {
            int status;
            if (results[r] != HUNG || waitpid(pid[r], &status, WNOHANG) != pid[r])
                continue;
            results[r] = WIFEXITED(status) ? WEXITSTATUS(status) : KILLED + WTERMSIG(status);
            left--;
        }
        if (left)
            usleep(1000);
    }
    for (int r = 0; r < size; r++)
        if (results[r] == HUNG) {
            kill(pid[r], SIGKILL);
            waitpid(pid[r], NULL, 0);
        }
}

static inline void run_ranks(int size, rank_body *body, void *arg, double limit, int *results)
{
    char job[64];
    static int jobs;
    snprintf(job, sizeof job, "test-%ld-%d", (long)getpid(), jobs++);
    run_ranks_as(job, size, body, arg, limit, results);
}

static inline void all_well(int size, rank_body *body, void *arg, double limit)
{
    int results[MAX_RANKS];
    run_ranks(size, body, arg, limit, results);
    for (int r = 0; r < size; r++)
        if (results[r])
            fail_msg("rank %d of %d ended with %d", r, size, results[r]);
}

static inline uint64_t hash_bytes(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data;
    h = h ? h : 1469598103934665603u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h;
}
#endif
