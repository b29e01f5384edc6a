/* Schedules of up to 64 ranks, played in one process by a scheduler that is as unkind as the header allows: any rank may run at any time, a
 * message crosses at any time after both sides have named it, a SEND is not done before, memory that a RECV was given holds NaN until then.
 * Results are compared with plain sums, bits over all ranks, and what each host sends with the least possible. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <base.h>
#include <schedule.h>

enum { MAX = 64 };

typedef struct {
    td__schedule list;
    double *in, *out, *slot, *room;
    int at, posted, meets;                     /* next step; next RECV to be named; MEETs passed                                 */
    int under_way;                             /* receives named and not taken                                                   */
    char *named, *done;                        /* per step                                                                       */
    int left;                                  /* SENDs before it are done                                                       */
    int took[MAX], gave[MAX];                  /* where to look for the next RECV from, SEND to each                              */
    int64_t sent;                              /* elements to other hosts                                                         */
} player;

static td__layout layout;
static td__plan plan;
static player world[MAX];
static const double post = 0.5;

static double pre_of(int r)
{
    return 1 + r % 3;
}

static bool flat(void)
{
    return plan.algorithm == TD_ALGORITHM_RING;
}

static int64_t in_size(void)
{
    return plan.kind == TD_PLAN_REDUCE_SCATTER ? plan.count * layout.ranks : plan.count;
}

static int64_t out_size(void)
{
    return plan.kind == TD_PLAN_ALL_GATHER ? plan.count * layout.ranks : plan.count;
}

static int mates(int r)
{
    return flat() ? 1 : layout.first[layout.host[r] + 1] - layout.first[layout.host[r]];
}

static int mate(int r, int local)
{
    return flat() || local < 0 ? r : layout.member[layout.first[layout.host[r]] + local];
}

static double *memory(int r, td__place p)
{
    assert_true(p.space != TD_SPACE_SLOT || (p.of >= 0 && p.of < world[r].list.slots));
    assert_true(p.at >= 0);
    return p.space == TD_SPACE_SLOT ? world[r].slot + (int64_t)p.of * plan.slice + p.at
                                    : (p.space == TD_SPACE_IN ? world[mate(r, p.of)].in : world[mate(r, p.of)].out) + p.at;
}

/* Before which all SENDs have left their memory. */
static int first_send(player *p, int *from)
{
    while (*from < p->list.count && (p->list.step[*from].kind != TD_STEP_SEND || p->done[*from]))
        ++*from;
    return *from;
}

/* May what waits for step `after` go on? */
static bool is_done(player *p, int after)
{
    if (after < 0)
        return true;
    if (after >= p->at || p->list.step[after].kind != TD_STEP_SEND)
        return after < p->at;
    return first_send(p, &p->left) > after;
}

static void to_every(int r, int64_t at, const double *from, int64_t n)
{
    for (int k = 0; k < mates(r); k++)
        memmove(world[mate(r, k)].out + at, from, (size_t)n * sizeof *from);
}

static void add_up(int r, const td__step *s)
{
    double *sum = malloc((size_t)s->n * sizeof *sum), *mine = memory(r, s->from);
    for (int64_t i = 0; i < s->n; i++) {
        double x = s->slot >= 0 ? world[r].slot[s->slot * plan.slice + i] : 0;
        if (s->from.space == TD_SPACE_OUT)
            x += mine[i];
        else
            for (int k = 0; k < mates(r); k++)
                x += world[mate(r, k)].in[s->from.at + i] * pre_of(mate(r, k));
        sum[i] = s->last ? x * post : x;
    }
    if (s->to.space == TD_SPACE_EVERY_OUT)
        to_every(r, s->to.at, sum, s->n);
    else
        memcpy(memory(r, s->to), sum, (size_t)s->n * sizeof *sum);
    free(sum);
}

/* One step of rank r; false: it cannot go on. */
static bool advance(int r)
{
    player *p = &world[r];
    if (p->at == p->list.count)
        return false;
    const td__step *s = &p->list.step[p->at];
    if (s->kind == TD_STEP_RECV && !p->done[p->at])
        return false;
    if (s->kind == TD_STEP_COMBINE && !is_done(p, s->after))
        return false;
    if (s->kind == TD_STEP_MEET)
        p->meets = 1;
    for (int k = 0; s->kind == TD_STEP_MEET && k < mates(r); k++)
        if (!world[mate(r, k)].meets)
            return false;
    if (s->kind == TD_STEP_COMBINE)
        add_up(r, s);
    if (s->kind == TD_STEP_COPY)
        to_every(r, s->to.at, memory(r, s->from), s->n);
    if (s->kind == TD_STEP_RECV)
        p->under_way--;
    if (s->kind == TD_STEP_SEND && layout.host[s->peer] != layout.host[r])
        p->sent += s->n;
    p->at++;
    return true;
}

/* Names the next receive: from now on its memory is not ours. */
static bool name_next(int r)
{
    player *p = &world[r];
    if (p->posted < p->at)
        p->posted = p->at;
    while (p->posted < p->list.count && (p->list.step[p->posted].kind != TD_STEP_RECV || p->named[p->posted]))
        p->posted++;
    if (p->posted == p->list.count || p->under_way >= plan.slots || !is_done(p, p->list.step[p->posted].after))
        return false;
    const td__step *s = &p->list.step[p->posted];
    double *to = memory(r, s->to);
    assert_true(s->n > 0 && s->n <= plan.slice);
    for (int64_t i = 0; i < s->n; i++)
        to[i] = NAN;
    p->named[p->posted] = 1;
    p->under_way++;
    return true;
}

/* The first open receive of r from somebody whose first open send to r has been reached, if any, crosses. */
static bool cross(int r, int from)
{
    player *p = &world[r], *q = &world[from];
    int i = p->took[from], k = q->gave[r];
    while (i < p->list.count && (p->list.step[i].kind != TD_STEP_RECV || p->list.step[i].peer != from || p->done[i]))
        i++;
    while (k < q->at && (q->list.step[k].kind != TD_STEP_SEND || q->list.step[k].peer != r || q->done[k]))
        k++;
    p->took[from] = i, q->gave[r] = k;
    if (i == p->list.count || !p->named[i] || k == q->at)
        return false;
    assert_int_equal(p->list.step[i].n, q->list.step[k].n);
    assert_int_equal(p->list.step[i].tag, q->list.step[k].tag);
    memcpy(memory(r, p->list.step[i].to), memory(from, q->list.step[k].from), (size_t)p->list.step[i].n * sizeof(double));
    p->done[i] = q->done[k] = 1;
    return true;
}

static bool peers[MAX][MAX];

static void play(unsigned seed)
{
    for (int idle = 0; idle < 2;) {
        bool moved = false;
        for (int k = 0; k < layout.ranks; k++) {
            int r = idle ? k : rand_r(&seed) % layout.ranks;
            for (int i = 0; i < 1 + (int)(rand_r(&seed) % 4); i++)
                moved |= advance(r);
            for (int i = 0; i < 1 + (int)(rand_r(&seed) % 3); i++)
                moved |= name_next(r);
            for (int from = 0; from < layout.ranks; from++)
                if (peers[r][from] && (idle || rand_r(&seed) % 2))
                    moved |= cross(r, from);
        }
        idle = moved ? 0 : idle + 1;
    }
    for (int r = 0; r < layout.ranks; r++) {
        if (world[r].at != world[r].list.count)
            fail_msg("rank %d waits for ever at step %d of %d", r, world[r].at, world[r].list.count);
        for (int i = 0; i < world[r].list.count; i++)
            if (world[r].list.step[i].kind == TD_STEP_SEND && !world[r].done[i])
                fail_msg("rank %d: nobody takes what step %d sends", r, i);
    }
}

/* Whole numbers below 2^40: exact in any order. */
static double value(int r, int64_t i)
{
    return (double)((i * 7919 + r * 104729) % 1000003 - 500000);
}

static double expected(int r, int64_t i)
{
    double sum = 0;
    int64_t n = plan.count;
    if (plan.kind == TD_PLAN_BROADCAST)
        return value(plan.root, i);
    if (plan.kind == TD_PLAN_ALL_GATHER)
        return value((int)(i / n), i % n);
    for (int k = 0; k < layout.ranks; k++)
        sum += value(k, plan.kind == TD_PLAN_REDUCE_SCATTER ? r * n + i : i) * pre_of(k);
    return sum * post;
}

static void set_up(bool exact, bool in_place)
{
    memset(peers, 0, sizeof peers);
    for (int r = 0; r < layout.ranks; r++) {
        player *p = &world[r];
        assert_int_equal(td__schedule_make(&p->list, &layout, &plan, r), 0);
        for (int i = 0; i < p->list.count; i++)
            if (p->list.step[i].kind == TD_STEP_RECV)
                peers[r][p->list.step[i].peer] = true;
        p->room = malloc((size_t)(in_size() + 1) * sizeof(double));
        p->in = p->room;
        p->out = in_place && plan.kind != TD_PLAN_ALL_GATHER ? p->in : malloc((size_t)(out_size() + 1) * sizeof(double));
        p->slot = malloc((size_t)(p->list.slots * plan.slice) * sizeof(double));
        p->named = calloc((size_t)p->list.count + 1, 1);
        p->done = calloc((size_t)p->list.count + 1, 1);
        p->at = p->posted = p->meets = p->under_way = p->left = 0;
        memset(p->took, 0, sizeof p->took);
        memset(p->gave, 0, sizeof p->gave);
        p->sent = 0;
        for (int64_t i = 0; i < out_size() && p->out != p->in; i++)
            p->out[i] = NAN;
        if (in_place && plan.kind == TD_PLAN_ALL_GATHER)
            p->in = p->out + r * plan.count;
        double *at = p->in;
        for (int64_t i = 0; i < in_size(); i++)
            at[i] = exact ? value(r, i) : sin((double)(i + 1) * (r + 1));
        if (plan.kind == TD_PLAN_BROADCAST && r != plan.root)
            for (int64_t i = 0; i < in_size(); i++)
                p->in[i] = NAN;
    }
}

static void tear_down(void)
{
    for (int r = 0; r < layout.ranks; r++) {
        player *p = &world[r];
        if (p->out != p->room)
            free(p->out);
        free(p->room);
        free(p->slot);
        free(p->named);
        free(p->done);
        td__schedule_free(&p->list);
    }
}

/* What the rank that sends most, of the hosts' lanes, need not exceed: lines are not cut. */
static void check_bytes(void)
{
    int hosts = flat() ? layout.ranks : layout.hosts;
    double most = 0, least = 0, total = plan.count;
    for (int r = 0; r < layout.ranks; r++)
        most = fmax(most, (double)world[r].sent);
    int lanes = layout.ranks;
    for (int h = 0; h < layout.hosts; h++)
        lanes = layout.first[h + 1] - layout.first[h] < lanes ? layout.first[h + 1] - layout.first[h] : lanes;
    if (flat())
        lanes = 1;
    bool even = layout.ranks == lanes * layout.hosts, power = (hosts & (hosts - 1)) == 0;
    double slack = 2.0 * (double)plan.line * hosts + 2;
    if (hosts == 1) {
        assert_true(most == 0);
        return;
    }
    switch (plan.kind) {
    case TD_PLAN_ALL_REDUCE:
        least = 2.0 * (hosts - 1) / hosts * total / lanes;
        if (plan.algorithm == TD_ALGORITHM_HALVING && !power)
            least = least + total / lanes;     /* the partner's result, once                                                     */
        break;
    case TD_PLAN_REDUCE_SCATTER:
    case TD_PLAN_ALL_GATHER:
        if (!even && !flat())
            return;                            /* no part is cut                                                                 */
        least = (hosts - 1) * total;
        break;
    case TD_PLAN_BROADCAST:
        least = total / lanes;
        break;
    }
    if (most > least + slack)
        fail_msg("%s, kind %d, %d ranks on %d hosts: a rank sends %g of %g elements, where %g would do", td__algorithm_names[plan.algorithm], plan.kind,
                 layout.ranks, layout.hosts, most, total, least);
}

static void check_results(bool exact)
{
    for (int r = 0; r < layout.ranks; r++)
        for (int64_t i = 0; i < out_size(); i++) {
            double is = world[r].out[i], should = exact ? expected(r, i) : world[0].out[i];
            if (!exact && plan.kind == TD_PLAN_REDUCE_SCATTER)
                return;
            if (is != should)
                fail_msg("%s, kind %d, %d ranks on %d hosts, %lld elements, slices of %lld: rank %d has %.17g at %lld, expected %.17g",
                         td__algorithm_names[plan.algorithm], plan.kind, layout.ranks, layout.hosts, (long long)plan.count,
                         (long long)plan.slice, r, is, (long long)i, should);
        }
}

static void one(int64_t count, int64_t slice, int slots, unsigned seed)
{
    for (int kind = TD_PLAN_ALL_REDUCE; kind <= TD_PLAN_BROADCAST; kind++)
        for (int algorithm = 0; algorithm < TD_ALGORITHMS; algorithm++)
            for (int variant = 0; variant < 2; variant++) {
                bool reduce = kind == TD_PLAN_ALL_REDUCE, in_place = variant && kind != TD_PLAN_REDUCE_SCATTER, exact = !variant || !reduce;
                if (algorithm == TD_ALGORITHM_HALVING && !reduce)
                    continue;
                plan = (td__plan){ .kind = (td__plan_kind)kind, .algorithm = (td__algorithm)algorithm, .root = (int)(seed * 7) % layout.ranks,
                                   .count = count, .slice = slice, .line = 4, .slots = slots };
                set_up(exact, in_place);
                play(seed + (unsigned)variant);
                check_results(exact);
                check_bytes();
                tear_down();
            }
}

static void all_sizes(const char *hosts)
{
    int host_of[MAX], n = 0;
    for (const char *c = hosts; *c; c++)
        host_of[n++] = *c;
    assert_int_equal(td__layout_make(&layout, n, host_of), 0);
    unsigned seed = (unsigned)n;
    static const int64_t counts[] = { 1, 5, 64, 1000 };
    for (int i = 0; i < 4; i++)
        for (int slots = 1; slots <= 4; slots += 3)
            one(counts[i], i < 3 ? 8 : 24, slots, ++seed);
    one(1000, 1000, 2, ++seed);
    td__layout_free(&layout);
}

static void one_host(void **state)
{
    (void)state;
    all_sizes("a");
    all_sizes("aaa");
}

static void one_rank_a_host(void **state)
{
    (void)state;
    all_sizes("ab");
    all_sizes("abc");
    all_sizes("abcd");
    all_sizes("abcde");
    all_sizes("abcdefg");
    all_sizes("abcdefghijklm");
}

static void several_ranks_a_host(void **state)
{
    (void)state;
    all_sizes("aabb");
    all_sizes("aabbcc");
    all_sizes("abcabc");                       /* in turns */
    all_sizes("aaaabbbbccccdddd");
}

static void uneven(void **state)
{
    (void)state;
    all_sizes("aab");
    all_sizes("aaabcc");
    all_sizes("abbbcbacc");
    all_sizes("aaaaabbc");
}

static void many(void **state)
{
    (void)state;
    static const char hosts[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-";
    int host_of[MAX];
    for (int each = 1; each <= 8; each *= 8) {
        for (int r = 0; r < MAX; r++)
            host_of[r] = hosts[r / each];
        assert_int_equal(td__layout_make(&layout, MAX, host_of), 0);
        one(700, 16, 4, 5);
        td__layout_free(&layout);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_host),
        cmocka_unit_test(one_rank_a_host),
        cmocka_unit_test(several_ranks_a_host),
        cmocka_unit_test(uneven),
        cmocka_unit_test(many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
