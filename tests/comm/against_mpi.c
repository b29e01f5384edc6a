/* Every collective of the public interface beside the plain function of MPI, on the same random data: run by mpirun, in a program that owns its MPI.
 *
 *     against_mpi BACKEND SEED CASES [GROUPS]     GROUPS: how many times a random group is made and does CASES
 *
 * A case is a kind, a dtype, a reduction, counts, a root, in place or apart, tensors (in the arena or not) or plain memory, blocking or started;
 * up to eight of them are under way at a time and are waited for in any order. Copies, integers, minima and maxima must be equal; sums and products of
 * floats as near as their roundings allow; f16 and bf16 the f64 result rounded once, give or take f32's roundings before that. What is not a result must
 * be as it was, and what all ranks get must have the same bits on all. */
#include "against_mpi.h"
#include <unistd.h>

static const char *const names[] = { "broadcast", "all_reduce", "reduce", "reduce_scatter", "all_gather", "gather", "scatter", "all_to_all",
                                     "all_gather_uneven", "all_to_all_uneven", "barrier" };
int rank, size;
td_comm *tested;
MPI_Comm plain;

void fail_with(const job *j, const char *what, int64_t i)
{
    fprintf(stderr, "rank %d of %d, case %d: %s(%s, op %d, count %lld, root %d%s%s%s%s): %s at %lld (%s)\n", rank, size, j->number, names[j->kind],
            td_dtype_name(j->t), (int)j->op, (long long)j->count, j->root, j->in_place ? ", in place" : "", j->raw ? ", raw" : "",
            j->started ? ", started" : "", j->arena ? ", arena" : "", what, (long long)i, td_error_message());
    MPI_Abort(MPI_COMM_WORLD, 99);
    _exit(99);
}

/* ---- Tandem -------------------------------------------------------------------------------------------------------------------------------- */
static int run_raw(job *j)
{
    td_comm *w = tested;
    const bool st = j->started, at_root = rank == j->root;
    const void *in = j->in_n ? j->in : NULL;
    void *out = j->out_n ? j->out : NULL;
#define EITHER(name, ...) (st ? (j->work = td_raw_##name##_start(w, __VA_ARGS__), 0) : td_raw_##name(w, __VA_ARGS__))
    switch (j->kind) {
    case BROADCAST: return EITHER(broadcast, out, j->count, j->t, j->root);
    case ALL_REDUCE: return EITHER(all_reduce, in, out, j->count, j->t, j->op);
    case REDUCE: return EITHER(reduce, in, out, j->count, j->t, j->op, j->root);
    case REDUCE_SCATTER: return EITHER(reduce_scatter, in, out, j->count, j->t, j->op);
    case ALL_GATHER: return EITHER(all_gather, in, out, j->count, j->t);
    case GATHER: return EITHER(gather, in, at_root ? out : NULL, j->count, j->t, j->root);
    case SCATTER: return EITHER(scatter, at_root ? in : NULL, out, j->count, j->t, j->root);
    case ALL_TO_ALL: return EITHER(all_to_all, in, out, j->count, j->t);
    case ALL_GATHER_UNEVEN: return EITHER(all_gather_uneven, in, out, j->counts, j->t);
    default: return EITHER(all_to_all_uneven, in, j->in_counts, out, j->counts, j->t);
    }
#undef EITHER
}

static int run_tensors(job *j)
{
    td_comm *w = tested;
    const bool st = j->started, at_root = rank == j->root;
    td_tensor *in = j->in_x, *out = j->out_x;
    int64_t out_rows[RANKS], in_rows[RANKS];
    for (int r = 0; r < size; r++)
        out_rows[r] = j->counts[r] / j->width, in_rows[r] = j->in_counts[r] / j->width;
#define EITHER(name, ...) (st ? (j->work = td_##name##_start(w, __VA_ARGS__), 0) : td_##name(w, __VA_ARGS__))
    switch (j->kind) {
    case BROADCAST: return EITHER(broadcast, out, j->root);
    case ALL_REDUCE: return EITHER(all_reduce, in, j->op);
    case REDUCE: return EITHER(reduce_to, in, j->op, j->root);
    case REDUCE_SCATTER: return EITHER(reduce_scatter, out, in, j->op);
    case ALL_GATHER: return EITHER(all_gather, out, in);
    case GATHER: return EITHER(gather_to, at_root ? out : NULL, in, j->root);
    case SCATTER: return EITHER(scatter_from, out, at_root ? in : NULL, j->root);
    case ALL_TO_ALL: return EITHER(all_to_all, out, in);
    case ALL_GATHER_UNEVEN: return EITHER(all_gather_uneven, out, in, out_rows);
    default: return EITHER(all_to_all_uneven, out, out_rows, in, in_rows);
    }
#undef EITHER
}

static void run(job *j)
{
    j->work = NULL;
    int code = j->kind == BARRIER ? (j->started ? (j->work = td_barrier_start(tested), 0) : td_barrier(tested))
               : j->raw ? run_raw(j) : run_tensors(j);
    if (code)
        fail_with(j, "an error", code);
}

static void run_cases(uint64_t s, int cases)
{
    static job jobs[FLIGHT];
    for (int done = 0; done < cases;) {
        TD_SCOPE();
        const int n = 1 + (int)below(&s, FLIGHT);
        for (int i = 0; i < n; i++) {
            jobs[i] = (job){ .number = done + i };
            choose(&jobs[i], &s);
            prepare(&jobs[i], s + (uint64_t)rank * 1000003 + (uint64_t)i * 7);
            run(&jobs[i]);
        }
        for (int i = 0, k = (int)below(&s, n); i < n; i++, k = (k + 1) % n)
            if (jobs[k].work && td_wait(jobs[k].work))
                fail_with(&jobs[k], "an error of td_wait", 0);
        for (int i = 0; i < n; i++) {
            check(&jobs[i]);
            free(jobs[i].in_before);
            free(jobs[i].out_before);
        }
        done += n;
    }
}

/* The same split of both, of the world or of a group of it, on random colors and keys; then cases in each group, all groups at once. */
static void run_groups(uint64_t *s, int groups, int cases)
{
    const job none = { .number = -1 };
    for (int g = 0; g < groups; g++) {
        td_comm *made[3] = { td_world() };
        MPI_Comm same[3] = { MPI_COMM_WORLD };
        int depth = 0, theirs[2], ranks[RANKS], all[RANKS], me;
        uint64_t of_group = 0;
        MPI_Comm_rank(MPI_COMM_WORLD, &me);
        for (int d = 1; d < 3; d++) {
            int color[RANKS], key[RANKS];
            for (int r = 0; r < RANKS; r++)
                color[r] = (int)below(s, 3) - (below(s, 4) == 0), key[r] = (int)below(s, 5) - 2;
            const bool copy = below(s, 4) == 0;
            if (depth < d - 1)
                continue;
            const int r = td_rank(made[depth]);
            made[d] = copy ? td_comm_dup(made[depth]) : td_comm_split(made[depth], color[r] < 0 ? TD_NO_COLOR : color[r], key[r]);
            if (copy)
                MPI_Comm_dup(same[depth], &same[d]);
            else
                MPI_Comm_split(same[depth], color[r] < 0 ? MPI_UNDEFINED : color[r], key[r], &same[d]);
            if (td_error_message()[0] || (made[d] == NULL) != (same[d] == MPI_COMM_NULL))
                fail_with(&none, "a split", d);
            of_group = of_group * 4 + (uint64_t)(copy ? 3 : color[r] + 1);
            if (!made[d])
                continue;
            depth = d;
            tested = made[d], plain = same[d];
            MPI_Comm_rank(plain, &theirs[0]);
            MPI_Comm_size(plain, &theirs[1]);
            rank = td_rank(tested), size = td_size(tested);
            MPI_Allgather(&me, 1, MPI_INT, all, 1, MPI_INT, plain);
            if (rank != theirs[0] || size != theirs[1] || td_comm_ranks(tested, ranks) != size || memcmp(ranks, all, (size_t)size * sizeof *all))
                fail_with(&none, "who is in the group", rank);
        }
        if (depth == 2)                        /* the others of the same parent are in a group of it                          */
            run_cases(*s + of_group, cases);
        for (int d = depth; d > 0; d--) {
            MPI_Comm_free(&same[d]);
            if (g % 2 && td_comm_free(made[d]))
                fail_with(&none, "td_comm_free", d);
        }
    }
    tested = td_world(), plain = MPI_COMM_WORLD;
    rank = td_rank(tested), size = td_size(tested);
}

int main(int argc, char **argv)
{
    int provided;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    const job none = { .number = -1 };
    uint64_t s = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const int cases = argc > 3 ? atoi(argv[3]) : 300, groups = argc > 4 ? atoi(argv[4]) : 0;
    if (size > RANKS || td_init_mpi(MPI_COMM_WORLD) || strcmp(td_comm_backend_name(td_world()), argc > 1 ? argv[1] : ""))
        fail_with(&none, td_comm_backend_name(td_world()), size);
    tested = td_world(), plain = MPI_COMM_WORLD;
    if (groups)
        run_groups(&s, groups, cases);
    else
        run_cases(s, cases);
    if (rank == 0)
        printf("%s: %d cases on %d ranks%s\n", argv[1], cases, size, groups ? ", in groups" : "");
    int code = td_finish();
    MPI_Finalize();
    return code;
}
