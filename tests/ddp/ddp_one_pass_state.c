/* tests/ddp/ddp_one_pass_state.c: optimizer state that belongs to slices is saved whole, the same bytes whichever way steps go, and goes on under another way,
 * on one rank alone, or after td_ddp_free. Started on 2, 3 and 4 ranks by tandem run; TAP on rank 0's standard output.
 */
#include "experiment.h"

static size_t file_bytes(const char *name, char **into)
{
    FILE *f = fopen(name, "rb");
    long n = -1;
    *into = NULL;
    if (f && fseek(f, 0, SEEK_END) == 0 && (n = ftell(f)) > 0 && (*into = malloc((size_t)n))) {
        rewind(f);
        n = fread(*into, 1, (size_t)n, f) == (size_t)n ? n : -1;
    }
    if (f)
        fclose(f);
    return n > 0 ? (size_t)n : 0;
}

/* Half the run one way, saved; the other half another way, from the file. The file is the same whichever way, and whole: one rank alone that loads and
 * saves it writes it again. */
static void states(void)
{
    static float whole[ROOM], resumed[ROOM];
    static const struct { rule r; flags f; } kind[] = { { ADAMW, EMA }, { SGD, TWO }, { RMSPROP, DOUBLE } };
    td_comm *alone = td_comm_split(td_world(), rank, 0);
    for (size_t k = 0; k < 3; k++) {
        char *file[2] = { NULL, NULL };
        size_t bytes[2] = { 0, 0 };
        for (int way = 0; way < 4; way++) {
            const rule r = kind[k].r;
            const td__way first = way & 1 ? TD__WAY_ONE : TD__WAY_TWO, second = way & 2 ? TD__WAY_IN_TURN : TD__WAY_TWO;
            job a, b, c;
            begin(&a, r, kind[k].f, TD__WAY_TWO, 3);
            train(&a, 0, STEPS);
            const size_t n = note(&a, whole);
            end(&a);
            begin(&b, r, kind[k].f, first, 3);
            train(&b, 0, STEPS / 2);
            td_train_state s = state_of(&b);
            EXPECT(td_train_state_save(&s, path) == 0);
            end(&b);
            if (way < 2 && rank == 0)
                bytes[way] = file_bytes(path, &file[way]);
            begin(&c, r, kind[k].f, second, 5);
            train(&c, 0, 2);                           /* it had moments of its own, in slices of another layout                       */
            s = state_of(&c);
            EXPECT(td_train_state_load(&s, path) == 0);
            train(&c, STEPS / 2, STEPS);
            EXPECT(note(&c, resumed) == n && !memcmp(whole, resumed, n * sizeof *whole));
            end(&c);
        }
        EXPECT(rank != 0 || (bytes[0] > 0 && bytes[0] == bytes[1] && !memcmp(file[0], file[1], bytes[0])));

        /* one rank, no slices */
        job d;
        begin_on(&d, kind[k].r, kind[k].f, TD__WAY_MEASURE, 1, alone);
        EXPECT(!d.ddp->sliced);
        td_train_state s = state_of(&d);
        EXPECT(td_train_state_load(&s, path) == 0);
        char mine[160], *again = NULL;
        snprintf(mine, sizeof mine, "%s-%d", path, rank);
        EXPECT(td_train_state_save(&s, mine) == 0);
        const size_t count = rank == 0 ? file_bytes(mine, &again) : 0;
        EXPECT(rank != 0 || (count == bytes[0] && !memcmp(again, file[0], count)));
        unlink(mine);
        end(&d);
        free(again);
        free(file[0]);
        free(file[1]);
    }
    td_comm_free(alone);
}

/* td_ddp_free gives each rank all of the state: the optimizer goes on, in new buckets or alone, as if it had always had it. */
static void state_outlives_the_ddp(void)
{
    static float whole[ROOM], parts[ROOM];
    static const struct { rule r; flags f; } kind[] = { { ADAMW, 0 }, { RMSPROP, TWO }, { SGD, DOUBLE } };
    for (size_t k = 0; k < 3; k++) {
        job a, b;
        begin(&a, kind[k].r, kind[k].f, TD__WAY_TWO, 3);
        train(&a, 0, STEPS);
        const size_t n = note(&a, whole);
        const int64_t bytes = state_bytes(&a);
        end(&a);
        begin(&b, kind[k].r, kind[k].f, TD__WAY_ONE, 3);
        train(&b, 0, STEPS / 2);
        td_ddp_free(b.ddp);
        const int64_t all = state_bytes(&b);
        EXPECT(all > bytes && !td_error_pending());
        new_ddp(&b, TD__WAY_IN_TURN, NULL);
        train(&b, STEPS / 2, STEPS);
        EXPECT(note(&b, parts) == n && !memcmp(whole, parts, n * sizeof *whole));
        EXPECT(state_bytes(&b) < all);
        td_ddp_free(b.ddp);
        b.ddp = NULL;
        {
            TD_SCOPE();
            td_tensor *x = td_randn(TD_SHAPE(ROWS, WIDTH), 8, 8);
            td_backward(td_mse(td_forward(b.m->first, x), td_zeros(TD_SHAPE(ROWS, WIDTH), TD_F32)));
            for (int i = 0; i < 2 && b.opt[i]; i++)
                td_optim_step(b.opt[i]);
            EXPECT(note(&b, parts) == n && !td_error_pending() && memcmp(whole, parts, n * sizeof *whole) && same_everywhere(parts, n));
        }
        end(&b);
    }
}

int main(int argc, char **argv)
{
    start(&argc, &argv);
    static void (*const cases[])(void) = { states, state_outlives_the_ddp };
    return run_cases(cases, sizeof cases / sizeof *cases);
}
