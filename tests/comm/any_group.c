/* Groups and messages through the public functions, whatever carries them: run as a rank by a launcher (mpirun here).
 *
 *     any_group BACKEND|any                over hosts with two ranks each: any_group any two
 *     any_group BACKEND kill|mismatch      in a group with the ranks in reverse rank 1 dies while rank 0 waits for its message, or sends another length
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <tandem.h>

#define EXPECT(what)                                                                                                 \
    do {                                                                                                             \
        if (!(what)) {                                                                                               \
            fprintf(stderr, "rank %d: %s:%d: not so: %s (%s)\n", td_rank(td_world()), __FILE__, __LINE__, #what,     \
                    td_error_message());                                                                             \
            _exit(99);                                                                                               \
        }                                                                                                            \
    } while (0)

enum { MESSAGES = 120 };

static uint32_t dice(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static int32_t value(int from, int to, int salt, int64_t i)
{
    return (int32_t)(i * 31 + from * 1013 + to * 7 + salt * 131);
}

static bool holds(const int32_t *v, int64_t n, int from, int to, int salt)
{
    for (int64_t i = 0; i < n; i++)
        if (v[i] != value(from, to, salt, i))
            return false;
    return true;
}

static int32_t *filled(int64_t n, int from, int to, int salt)
{
    int32_t *v = malloc((size_t)n * sizeof *v + 1);
    for (int64_t i = 0; i < n; i++)
        v[i] = value(from, to, salt, i);
    return v;
}

/* The same list of messages on every rank; each starts its own in the list's order, receives before, between or after sends, waits in any order. */
static void pattern(td_comm *g, uint32_t state)
{
    const int size = td_size(g), rank = td_rank(g);
    struct { int from, to, tag; int64_t n; } m[MESSAGES];
    int32_t *out[MESSAGES], *in[MESSAGES];
    td_work *sent[MESSAGES], *got[MESSAGES];
    for (int i = 0; i < MESSAGES; i++) {
        m[i].from = (int)(dice(&state) % (uint32_t)size), m[i].to = (int)(dice(&state) % (uint32_t)size);
        m[i].tag = (int)(dice(&state) % 4) * 300000;
        m[i].n = dice(&state) % 8 == 0 ? dice(&state) % 200000 : dice(&state) % 2500;
        sent[i] = got[i] = NULL, in[i] = out[i] = NULL;
    }
    for (int way = 0; way < 2; way++)
        for (int i = 0; i < MESSAGES; i++) {
            if (m[i].to == rank && (way == 0) == (rank % 2)) {
                in[i] = malloc((size_t)m[i].n * 4 + 1);
                got[i] = td_raw_recv_start(g, in[i], m[i].n, TD_I32, m[i].from, m[i].tag);
            }
            if (m[i].from == rank && (way == 1) == (rank % 2)) {
                out[i] = filled(m[i].n, rank, m[i].to, i);
                sent[i] = td_raw_send_start(g, out[i], m[i].n, TD_I32, m[i].to, m[i].tag);
            }
        }
    for (int k = 0; k < MESSAGES; k++) {
        const int i = (k * 7 + rank) % MESSAGES;
        if (got[i])
            EXPECT(td_wait(got[i]) == 0 && holds(in[i], m[i].n, m[i].from, rank, i));
        if (sent[i])
            EXPECT(td_wait(sent[i]) == 0);
        free(in[i]);
        free(out[i]);
    }
}

/* Blocking, in a ring and between pairs. */
static void blocking(td_comm *g)
{
    static const int64_t sizes[] = { 0, 1, 700, 1500, 30000, 400000 };
    const int size = td_size(g), rank = td_rank(g), next = (rank + 1) % size, last = (rank + size - 1) % size;
    for (int k = 0; k < 6; k++) {
        const int64_t n = sizes[k];
        int32_t *out = filled(n, rank, next, k), *in = malloc((size_t)n * 4 + 1);
        EXPECT(td_raw_sendrecv(g, out, n, next, in, n, last, TD_I32, k) == 0 && holds(in, n, last, rank, k));
        memset(in, 0, (size_t)n * 4);
        if (rank % 2 == 0 && rank + 1 < size)
            EXPECT(td_raw_send(g, out, n, TD_I32, next, 1) == 0);
        if (rank % 2)
            EXPECT(td_raw_recv(g, in, n, TD_I32, last, 1) == 0 && holds(in, n, last, rank, k));
        free(in);
        free(out);
    }
}

typedef struct { td_comm *g; uint32_t seed; } use;

static void *in_thread(void *of)
{
    use *u = of;
    for (int i = 0; i < 5; i++) {
        pattern(u->g, u->seed + (uint32_t)i);
        TD_SCOPE();
        td_tensor *x = td_full(TD_SHAPE(1000), TD_F32, 1);
        EXPECT(td_all_reduce(u->g, x, TD_SUM) == 0 && td_at(x, TD_SHAPE(999)) == td_size(u->g));
    }
    return NULL;
}

static void at_once(int rank)
{
    pthread_t thread[3];
    use uses[3] = { { td_comm_split(td_world(), rank % 2, 0), 5 }, { td_comm_split(td_world(), 0, -rank), 50 }, { td_comm_dup(td_world()), 500 } };
    for (int i = 0; i < 3; i++)
        EXPECT(uses[i].g && pthread_create(&thread[i], NULL, in_thread, &uses[i]) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < 2; i++)
        EXPECT(td_comm_free(uses[i].g) == 0);  /* the last one is td_finish's */
}

/* Started on many groups, in another order on every rank. */
static void many_groups(int rank)
{
    enum { GROUPS = 5 };
    td_comm *g[GROUPS];
    for (int i = 0; i < GROUPS; i++)
        g[i] = i % 2 ? td_comm_dup(td_world()) : td_comm_split(td_world(), i == 4 ? rank / 2 : 0, -rank);
    for (int turn = 0; turn < 5; turn++) {
        TD_SCOPE();
        td_tensor *x[GROUPS];
        td_work *w[GROUPS];
        for (int k = 0; k < GROUPS; k++) {
            const int i = (k + rank + turn) % GROUPS;
            x[i] = td_full(TD_SHAPE(20000), TD_F32, i);
            w[i] = td_all_reduce_start(g[i], x[i], TD_SUM);
        }
        for (int k = 0; k < GROUPS; k++) {
            const int i = (k * 3 + rank) % GROUPS;
            EXPECT(td_wait(w[i]) == 0 && td_at(x[i], TD_SHAPE(19999)) == i * td_size(g[i]));
        }
    }
    for (int i = 0; i < GROUPS; i++)
        EXPECT(td_comm_free(g[i]) == 0);
}

static int faulty(const char *fault, int rank)
{
    td_comm *g = td_comm_split(td_world(), 0, -rank);
    const int zero = td_size(g) - 1, one = td_size(g) - 2;
    int32_t few[10];
    EXPECT(td_barrier(g) == 0);
    if (rank > 1)
        return td_finish();
    if (rank == 1 && !strcmp(fault, "kill"))
        kill(getpid(), SIGKILL);
    td_errors(TD_ERRORS_RETURN);
    time_t begun = time(NULL);
    int code = rank == 1 ? td_raw_send(g, few, 9, TD_I32, zero, 3) : td_raw_recv(g, few, 10, TD_I32, one, 3);
    printf("code %d after %d.0 s: %s\n", code, (int)(time(NULL) - begun), td_error_message());
    fflush(stdout);
    return td_finish();
}

/* Two ranks on each host: groups on one host go over shared memory whatever carries the world, with messages and collectives of all at once. */
static void two_levels(const char *backend, int rank, int size)
{
    td_comm *inner = td_comm_split(td_world(), rank / 2, 0), *across = td_comm_split(td_world(), rank % 2, 0);
    EXPECT(!strcmp(td_comm_backend_name(inner), "shm") && !strcmp(td_comm_backend_name(across), backend));
    for (int turn = 0; turn < 20; turn++) {
        TD_SCOPE();
        td_tensor *x = td_zeros_shared(inner, TD_SHAPE(30000), TD_F32), *y = td_full(TD_SHAPE(30000), TD_F32, rank);
        td_fill(x, rank + turn);
        td_work *b = td_all_reduce_start(across, y, TD_SUM), *a = td_all_reduce_start(inner, x, TD_SUM);
        pattern(inner, 40u + (uint32_t)turn);
        EXPECT(td_wait(a) == 0 && td_at(x, TD_SHAPE(29999)) == 4 * (rank / 2) + 1 + 2 * turn);
        double sum = 0;
        for (int r = rank % 2; r < size; r += 2)
            sum += r;
        EXPECT(td_wait(b) == 0 && td_at(y, TD_SHAPE(0)) == sum);
    }
    EXPECT(td_comm_free(inner) == 0 && td_comm_free(across) == 0);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    const int rank = td_rank(td_world()), size = td_size(td_world());
    EXPECT(argc >= 2);
    const char *backend = td_comm_backend_name(td_world());
    EXPECT(!strcmp(argv[1], "any") || !strcmp(backend, argv[1]));
    if (argc > 2 && !strcmp(argv[2], "two"))
        two_levels(backend, rank, size);
    else if (argc > 2)
        return faulty(argv[2], rank);
    blocking(td_world());
    pattern(td_world(), 3);
    for (int i = 0; i < 4; i++) {
        td_comm *g = td_comm_split(td_world(), (rank + i) % 2, i % 3 ? -rank : rank);
        EXPECT(!strcmp(td_comm_backend_name(g), td_size(g) == 1 ? "self" : backend));
        pattern(g, 90u + (uint32_t)i);
        blocking(g);
        EXPECT(td_comm_free(g) == 0);
    }
    at_once(rank);
    many_groups(rank);
    EXPECT(td_finish() == 0);
    if (rank == 0)
        printf("%s: groups and messages on %d ranks\n", backend, size);
    return 0;
}
