/* comm/group.c: groups of ranks: made by a split of another communicator, freed together, closed by td_finish.
 *
 * A group is a communicator like the world: its own numbers, thread, fingerprints, verdict and control page, so several are used at the same time.
 * All ranks of the parent make it together: they tell each other color, key and place, and every rank works out all groups alike. On each host the
 * group's control page is a block in the arena of its first rank there. A group on one host goes over shared memory whatever carries its
 * parent (unless TANDEM_COMM=mpi); one over several hosts asks the parent's transport (`split`). What one rank cannot do fails on all ranks
 * of the parent, with its sentence.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "comm_room.h"

/* ---- all communicators of this process, oldest first -------------------------------------------------------------------------------- */

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static td_comm *list;

void td__group_enlist(td_comm *comm)
{
    pthread_mutex_lock(&list_lock);
    td_comm **at = &list;
    while (*at)
        at = &(*at)->next;
    comm->next = NULL;
    *at = comm;
    pthread_mutex_unlock(&list_lock);
}

void td__group_delist(td_comm *comm)
{
    pthread_mutex_lock(&list_lock);
    for (td_comm **at = &list; *at; at = &(*at)->next)
        if (*at == comm) {
            *at = comm->next;
            break;
        }
    pthread_mutex_unlock(&list_lock);
}

void td__groups_each(void (*fn)(td_comm *comm, void *arg), void *arg)
{
    pthread_mutex_lock(&list_lock);
    for (td_comm *c = list; c; c = c->next)
        fn(c, arg);
    pthread_mutex_unlock(&list_lock);
}

/* ---- who goes where -------------------------------------------------------------------------------------------------------------------- */

enum { WRONG_COLOR = -2 };
typedef struct { int32_t color, key, host, local, rank; } seat;   /* host: the first rank of it; local: there; rank: in the world */
typedef struct { seat s; int at; } member;                        /* at: rank in the parent                                 */

typedef struct {
    const char *who;
    td_comm *parent, *group;                   /* group NULL: this rank is in none                                            */
    seat    *all;                              /* of the parent's ranks                                                       */
    member  *mine;                             /* of the group, in its order                                                  */
    int      index;                            /* of this rank's color among all                                              */
    bool     transport;                        /* does any group need the parent's?                                           */
    int      here, slot;                       /* ranks of the group on this host; this rank among them                        */
    member  *first;                            /* … the first of them                                                         */
    size_t   bytes;                            /* of the control page                                                         */
    void    *page;
    td_comm *made;                             /* what `split` works on                                                       */
} splitting;

static int gather(splitting *s, const void *mine, void *all, td_dtype t, int64_t count)
{
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = t, .in = mine, .out = all, .count = count, .pre = 1, .post = 1, .plain = true, .site = td__site,
                     .label = s->who };
    return td__coll_run(s->parent, &coll);
}

static int by_key(const void *a, const void *b)
{
    const member *x = a, *y = b;
    return x->s.key != y->s.key ? (x->s.key < y->s.key ? -1 : 1) : x->at - y->at;
}

/* Same host, and nobody wants MPI: shared memory. */
static bool needs_transport(const splitting *s, int32_t color)
{
    int n = 0, host = -1;
    bool several = false;
    for (int r = 0; r < s->parent->size; r++)
        if (s->all[r].color == color) {
            several |= n++ && s->all[r].host != host;
            host = s->all[r].host;
        }
    return n > 1 && (several || td__comm_asked_for("mpi"));
}

/* Colors are numbered in their own order, the same on every rank. Returns how many there are. */
static int number_colors(splitting *s, int32_t mine)
{
    int colors = 0;
    for (int r = 0; r < s->parent->size; r++) {
        const int32_t color = s->all[r].color;
        bool seen = color < 0;
        for (int k = 0; k < r && !seen; k++)
            seen = s->all[k].color == color;
        if (seen)
            continue;
        colors++;
        s->index += color < mine;
        s->transport |= needs_transport(s, color);
    }
    return colors;
}

static int new_group(splitting *s, int32_t color)
{
    td_comm *parent = s->parent, *g = s->group = td__calloc(sizeof *g);
    if (!g)
        return TD_ERR_MEMORY;
    td__comm_init(g);
    g->timeout = td__host.timeout();
    g->backend = &td__comm_self;
    snprintf(g->name, sizeof g->name, "group %d of %.30s", parent->groups + 1 + s->index, parent->name[0] ? parent->name : "world");
    s->mine = td__calloc((size_t)parent->size * sizeof *s->mine);
    g->world_rank = td__calloc((size_t)parent->size * sizeof *g->world_rank);
    g->reach.base = td__calloc((size_t)parent->size * sizeof *g->reach.base);
    g->reach.bytes = td__calloc((size_t)parent->size * sizeof *g->reach.bytes);
    if (!s->mine || !g->world_rank || !g->reach.base || !g->reach.bytes)
        return TD_ERR_MEMORY;
    for (int r = 0; r < parent->size; r++)
        if (s->all[r].color == color)
            s->mine[g->size++] = (member){ s->all[r], r };
    qsort(s->mine, (size_t)g->size, sizeof *s->mine, by_key);
    const td__reach *world = &td_world()->reach;
    g->reach.arena = world->arena;
    for (int i = 0; i < g->size; i++) {
        member *m = &s->mine[i];
        g->world_rank[i] = m->s.rank;
        if (m->at == parent->rank)
            g->rank = i, s->slot = s->here;
        if (m->s.host != s->all[parent->rank].host || g->size == 1)
            continue;
        s->first = s->first ? s->first : m;
        g->reach.base[s->here] = world->base[m->s.local];
        g->reach.bytes[s->here++] = world->bytes[m->s.local];
    }
    g->reach.n = s->here;
    s->bytes = td__control_bytes(s->here);
    return 0;
}

/* ---- the control page ------------------------------------------------------------------------------------------------------------------- */

/* Alone on its host: private memory. Else the first rank makes it; 0, its place + 1, or a negative code. */
static int64_t make_page(splitting *s)
{
    char error[300];
    td_comm *g = s->group;
    if (!g || g->size == 1)
        return 0;
    if (s->here == 1) {
        void *memory = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return td__fail(TD_ERR_MEMORY, "%s: no memory for the control page of %s (%s)", s->who, g->name, strerror(errno));
        s->page = memory;
        return 0;
    }
    if (s->slot != 0)
        return 0;
    g->block = td__arena_alloc(g->reach.arena, s->bytes, error, sizeof error);
    if (!g->block)
        return td__pending() ? td__pending() : td__fail(TD_ERR_MEMORY, "%s: the control page of %s: %s", s->who, g->name, error);
    return (int64_t)((char *)g->block - (char *)g->reach.base[0]) + 1;
}

/* Every rank of the parent has its page, or none has. */
static int share_pages(splitting *s)
{
    int64_t mine = make_page(s), *place = td__alloc((size_t)s->parent->size * sizeof *place);
    int code = place ? gather(s, &mine, place, TD_I64, 1) : td__pending();
    for (int r = 0; r < s->parent->size && !code; r++)
        if (place[r] < 0)
            code = td__comm_share_error(s->parent, r, (int)place[r], s->who);
    if (!code && s->group && s->here > 1) {
        s->page = (char *)s->group->reach.base[0] + place[s->first->at] - 1;
        s->group->page_elsewhere = true;
    }
    td__free(place);
    return code;
}

/* ---- the transport ------------------------------------------------------------------------------------------------------------------------ */

int td__group_split_run(td_comm *parent, td_coll *coll)
{
    splitting *s = coll->out;
    void **state = s->made ? &s->made->state : NULL;
    return parent->backend->split(parent->state, coll, s->made, s->made ? s->index : -1, s->made ? s->made->rank : 0, state);
}

static int open_transport(splitting *s)
{
    td_comm *g = s->group;
    int code = 0;
    bool over = g && g->size > 1 && needs_transport(s, s->all[s->parent->rank].color);
    if (over)
        g->backend = s->parent->backend;
    if (s->transport) {
        s->made = over ? g : NULL;
        td_coll coll = { .kind = TD_COLL_SPLIT, .out = s, .pre = 1, .post = 1, .site = td__site, .label = s->who };
        code = td__coll_run(s->parent, &coll);
    }
    if (!code && g && g->size > 1 && !over) {
        g->backend = &td__comm_shm;
        code = g->backend->open(&td__comm_host, NULL, g, &g->state);
    }
    return !code && g && g->backend->on_thread ? td__comm_thread_start(g) : code;
}

/* ---- the end of one ------------------------------------------------------------------------------------------------------------------------- */

/* Pages that somebody may still look at when their first rank has given up the group: given back at td_finish. */
typedef struct orphan { struct orphan *next; td__arena *arena; void *block; } orphan;
static orphan *orphans;

void td__group_orphan(td__arena *arena, void *block)
{
    orphan *o = td__alloc(sizeof *o);
    pthread_mutex_lock(&list_lock);
    if (o) {
        *o = (orphan){ orphans, arena, block };
        orphans = o;
    }
    pthread_mutex_unlock(&list_lock);
}

/* patience: for how long the others may still look at a page that is ours to give back. */
static void close_group(td_comm *g, bool well, double patience)
{
    td__group_delist(g);
    td__post_close(g, well && !atomic_load(&g->code));
    if (!td__comm_thread_stop(g)) {            /* it hangs inside the transport: what it uses stays as it is                   */
        td__control_detach(g->control, false);
        return;
    }
    td__comm_trim(g);
    td__head *head = g->control ? g->control->head : NULL;
    td__arena *arena = g->reach.arena;
    void *block = g->block;
    const uint32_t n = (uint32_t)g->reach.n;
    td__comm_close_parts(g, well && !atomic_load(&g->code));
    double end = td__now() + patience;
    while (block && head && atomic_load(&head->left) < n && td__now() < end)
        usleep(100);
    if (block && head && atomic_load(&head->left) < n)
        td__group_orphan(arena, block);
    else if (block)
        td__arena_free(arena, block);
}

int td_comm_free(td_comm *comm)
{
    TD_ENTER();
    if (!comm)
        return 0;
    if (!comm->world_rank)
        return td__fail(TD_ERR_ARGUMENT, "td_comm_free: the world is freed by td_finish");
    if (td__recorded_here())
        td__record_refuse("td_comm_free is called by the step: its group would be gone at the first replay");
    int code = td__comm_drain_one(comm);
    if (!code && comm->control) {
        td_coll coll = { .kind = TD_COLL_BARRIER, .pre = 1, .post = 1, .site = td__site, .label = "td_comm_free" };
        code = td__coll_run(comm, &coll);
    }
    close_group(comm, !code, code ? 0.2 : comm->timeout);
    return code;
}

int td__groups_drain(void)
{
    int first = 0;
    for (td_comm *c = list; c; c = c->next) {  /* td_finish: no other thread makes or frees groups now                         */
        int code = td__comm_drain_one(c);
        first = first ? first : code;
    }
    return first;
}

void td__groups_close(bool well)
{
    for (td_comm *c = list, *next; c; c = next) {
        next = c->next;
        if (c->world_rank)
            close_group(c, well, 0);
    }
    while (orphans) {
        orphan *next = orphans->next;
        td__arena_free(orphans->arena, orphans->block);
        td__free(orphans);
        orphans = next;
    }
}

/* ---- making -------------------------------------------------------------------------------------------------------------------------------- */

static int take_seats(splitting *s, int color, int key)
{
    const td__control *world = td_world()->control;
    td_comm *parent = s->parent;
    seat mine = { color, key, world ? world->slot[0].rank : 0, world ? world->me : 0, td__comm_world_rank(parent, parent->rank) };
    if (color < 0 && color != TD_NO_COLOR) {
        td__fail(TD_ERR_ARGUMENT, "%s: color %d is negative; expected 0 or more, or TD_NO_COLOR", s->who, color);
        mine.color = WRONG_COLOR;
    }
    s->all = td__calloc((size_t)parent->size * sizeof *s->all);
    int code = s->all ? gather(s, &mine, s->all, TD_I32, sizeof mine / 4) : td__pending();
    for (int r = 0; r < parent->size && !code; r++)
        if (s->all[r].color == WRONG_COLOR)
            code = td__comm_share_error(parent, r, TD_ERR_ARGUMENT, s->who);
    return code;
}

static int make_group(splitting *s, int color)
{
    td_comm *parent = s->parent;
    int colors = number_colors(s, color), code = 0;
    if (s->transport && !parent->backend->split)
        return td__fail(TD_ERR_UNSUPPORTED, "%s: a group of several hosts needs MPI, which carries the world then; %s carries it here", s->who,
                        parent->backend->name);
    if (color >= 0)
        code = new_group(s, color);
    parent->groups += colors;
    code = td__comm_agree(parent, code, s->who);
    code = code ? code : share_pages(s);
    if (code)
        return code;
    td_comm *g = s->group;
    if (g && g->size > 1) {
        g->control = &g->page;
        code = td__control_attach(g->control, g, s->page, s->slot, s->here, s->all[parent->rank].rank, s->who, td_world()->control->head);
        s->page = NULL;
        code = code ? td__comm_report(g, code) : 0;
    }
    if (!code || s->transport) {               /* who fails still takes part, or the others would wait                         */
        int opened = open_transport(s);
        code = code ? code : opened;
    }
    return td__comm_agree(parent, code, s->who);
}

static td_comm *split(const char *who, td_comm *comm, int color, int key)
{
    splitting s = { .who = who, .parent = comm };
    if (!comm) {
        td__fail(TD_ERR_ARGUMENT, "%s: the communicator is NULL", who);
        return NULL;
    }
    if (td__recorded_here())
        td__record_refuse("a group is made by the step: every replay would use the one of now");
    int code = take_seats(&s, color, key);
    code = code ? code : make_group(&s, color);
    td_comm *g = s.group;
    if (code && g) {
        if (s.page && s.here == 1)
            munmap(s.page, s.bytes);
        close_group(g, false, 0.2);
    } else if (g) {
        td__group_enlist(g);
    }
    td__free(s.all);
    td__free(s.mine);
    return code ? NULL : g;
}

td_comm *td_comm_split(td_comm *comm, int color, int key)
{
    TD_ENTER();
    return split("td_comm_split", comm, color, key);
}

td_comm *td_comm_dup(td_comm *comm)
{
    TD_ENTER();
    return split("td_comm_dup", comm, 0, comm ? comm->rank : 0);
}

/* ---- small things -------------------------------------------------------------------------------------------------------------------------- */

const char *td_comm_name(const td_comm *comm)
{
    return !comm ? "" : comm->name[0] ? comm->name : "world";
}

int td_comm_world_rank(const td_comm *comm, int rank)
{
    TD_ENTER();
    if (!comm || rank < 0 || rank >= comm->size)
        return td__fail(TD_ERR_ARGUMENT, "td_comm_world_rank: rank %d is none of the ranks 0 to %d", rank, comm ? comm->size - 1 : -1);
    return td__comm_world_rank(comm, rank);
}

int td_comm_ranks(const td_comm *comm, int *ranks)
{
    TD_ENTER();
    if (!comm || !ranks)
        return td__fail(TD_ERR_ARGUMENT, "td_comm_ranks: %s is NULL", comm ? "ranks" : "the communicator");
    for (int i = 0; i < comm->size; i++)
        ranks[i] = td__comm_world_rank(comm, i);
    return comm->size;
}
