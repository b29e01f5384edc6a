/* comm/point_shm.c: letters between ranks of one host through their arenas.
 *
 * Each rank has a box in its arena: a bell, and for each other rank a ring of places of parcels meant for it. A parcel is a block of the sender's
 * arena: the envelope, and
 *   copied   up to 64 KB of data; the sender is done at once, unless 64 of them already wait for this receiver
 *   direct   nothing: the data lie in the sender's arena, and the receiver takes them from there
 *   pieces   two buffers of 256 KB through which a long private message goes
 * The receiver takes parcels off the rings in order, keeps those that nobody waits for yet, and matches by tag; so neither many messages nor
 * their order can stop the ring. Whoever has done something for the other rings its bell. Freed parcels are kept for the next message.
 */
#include <stdio.h>
#include <string.h>
#include "point.h"

enum { RING = 64, COPIED = 64 * 1024, SMALL = 4096, CLASSES = 3, KEPT = 32 };
enum { BY_COPY, DIRECT, PIECES };
enum { POSTED, TAKEN };

typedef struct {
    _Alignas(64) _Atomic uint64_t tail;        /* parcels put in, by the sender                                               */
    uint64_t place[RING];                      /* of the parcel in the sender's arena                                          */
    _Alignas(64) _Atomic uint64_t head;        /* taken off, by the receiver                                                   */
} ring;

typedef struct {
    _Atomic uint32_t bell, sleepers;
    _Alignas(64) ring to[];
} box;

typedef struct parcel {
    _Alignas(64) _Atomic int32_t state;
    int32_t  kind, class;
    td__envelope envelope;
    int64_t  at;                               /* direct: of the data in the sender's arena                                    */
    _Atomic uint64_t filled, drained;          /* pieces                                                                       */
    struct parcel *next;                       /* the sender's: waiting to be taken, or kept                                   */
    int32_t  peer;
    _Alignas(64) char data[];
} parcel;

typedef struct come { struct come *next; parcel *p; } come;   /* off the ring, and nobody has asked for it                       */

typedef struct {
    box    *mine;
    come  **first;                             /* by peer                                                                     */
    come   *spare;
    parcel *waiting, *kept[CLASSES];
    int    *untaken, kept_count[CLASSES];      /* untaken: copied parcels by peer                                              */
    int    *stalled;                           /* by peer: the look in which a letter did not fit: none may overtake it         */
    int     looks;
} boxes;

static size_t class_bytes(int class)
{
    return sizeof(parcel) + (class == 0 ? SMALL : class == 1 ? COPIED : 2 * TD_STAGE);
}

static box *box_of(td__post *post, int peer)
{
    const uint64_t at = atomic_load(&post->comm->control->slot[peer].post);
    return at ? (box *)((char *)post->comm->reach.base[peer] + at - 1) : NULL;
}

/* A peer without a box has nobody who sleeps; when it makes one it looks first. */
static void ring_bell(td__post *post, int peer)
{
    box *b = box_of(post, peer);
    if (!b)
        return;
    atomic_fetch_add(&b->bell, 1);
    if (atomic_load(&b->sleepers))
        td__futex_wake_all(&b->bell);
}

static int shm_open_post(td__post *post)
{
    char error[300];
    td_comm *comm = post->comm;
    const size_t n = (size_t)comm->size;
    boxes *s = post->state = td__calloc(sizeof *s);
    if (!s)
        return td__pending();
    s->first = td__calloc(n * sizeof *s->first);
    s->untaken = td__calloc(n * sizeof *s->untaken);
    s->stalled = td__calloc(n * sizeof *s->stalled);
    if (!s->first || !s->untaken || !s->stalled)
        return td__pending();
    s->mine = td__arena_alloc(comm->reach.arena, sizeof(box) + n * sizeof(ring), error, sizeof error);
    if (!s->mine)
        return td__pending() ? td__pending() : td__fail(TD_ERR_MEMORY, "messages: %s", error);
    post->bell = &s->mine->bell;
    atomic_store(&comm->control->mine->post, (uint64_t)((char *)s->mine - (char *)comm->reach.base[comm->rank]) + 1);
    return 0;
}

/* ---- parcels of this rank ------------------------------------------------------------------------------------------------------------------ */

static parcel *take_parcel(td__post *post, int class)
{
    char error[300];
    boxes *s = post->state;
    parcel *p = s->kept[class];
    if (p) {
        s->kept[class] = p->next;
        s->kept_count[class]--;
    } else {
        p = td__arena_alloc(post->comm->reach.arena, class_bytes(class), error, sizeof error);
        if (!p) {
            td__comm_fail(post->comm, TD_ERR_MEMORY, "rank %d has no shared memory for a message: %s",
                          td__comm_world_rank(post->comm, post->comm->rank), error);
            return NULL;
        }
    }
    p->class = class;
    p->next = NULL;
    atomic_store(&p->state, POSTED);
    atomic_store(&p->filled, 0);
    atomic_store(&p->drained, 0);
    return p;
}

static void put_parcel(td__post *post, parcel *p)
{
    boxes *s = post->state;
    if (s->kept_count[p->class] >= (p->class == 2 ? 2 : KEPT)) {
        td__arena_free(post->comm->reach.arena, p);
        return;
    }
    p->next = s->kept[p->class];
    s->kept[p->class] = p;
    s->kept_count[p->class]++;
}

/* ---- sending ---------------------------------------------------------------------------------------------------------------------------------- */

static int64_t in_arena(const td_comm *comm, const void *data, size_t bytes)
{
    const size_t at = (size_t)((uintptr_t)data - (uintptr_t)comm->reach.base[comm->rank]), all = comm->reach.bytes[comm->rank];
    return data && at < all && bytes <= all - at ? (int64_t)at : -1;
}

/* A copied parcel needs its letter no more, while there are not too many. */
static bool leave_it(boxes *s, td__letter *l)
{
    parcel *p = l->block;
    if (p->kind != BY_COPY || s->untaken[l->peer] >= RING)
        return false;
    p->next = s->waiting;
    s->waiting = p;
    s->untaken[l->peer]++;
    return l->done = true;
}

static bool post_parcel(td__post *post, td__letter *l)
{
    boxes *s = post->state;
    ring *r = &s->mine->to[l->peer];
    const uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if (s->stalled[l->peer] == s->looks || tail - atomic_load_explicit(&r->head, memory_order_acquire) == RING) {
        s->stalled[l->peer] = s->looks;
        return false;
    }
    const int64_t at = l->bytes > SMALL ? in_arena(post->comm, l->data, l->bytes) : -1;
    const int kind = at >= 0 ? DIRECT : l->bytes <= COPIED ? BY_COPY : PIECES;
    parcel *p = take_parcel(post, kind == PIECES ? 2 : kind == BY_COPY && l->bytes > SMALL ? 1 : 0);
    if (!p)
        return false;
    p->kind = kind, p->at = at, p->peer = l->peer;
    td__envelope_of(l, &p->envelope);
    if (kind == BY_COPY && l->bytes)
        memcpy(p->data, l->data, l->bytes);
    r->place[tail % RING] = (uint64_t)((char *)p - (char *)post->comm->reach.base[post->comm->rank]);
    atomic_store(&r->tail, tail + 1);
    ring_bell(post, l->peer);
    l->block = p;
    l->step = 1;
    leave_it(s, l);
    return true;
}

static bool send_on(td__post *post, td__letter *l)
{
    parcel *p = l->block;
    if (l->step == 0)
        return post_parcel(post, l);
    bool moved = false;
    if (p->kind == PIECES) {
        const uint64_t pieces = (l->bytes + TD_STAGE - 1) / TD_STAGE;
        while (l->piece < pieces && l->piece - atomic_load_explicit(&p->drained, memory_order_acquire) < 2) {
            const size_t from = l->piece * TD_STAGE, left = l->bytes - from;
            memcpy(p->data + (l->piece & 1) * TD_STAGE, l->data + from, left < TD_STAGE ? left : TD_STAGE);
            atomic_store_explicit(&p->filled, ++l->piece, memory_order_release);
            ring_bell(post, l->peer);
            moved = true;
        }
    }
    if (atomic_load(&p->state) == TAKEN) {
        put_parcel(post, p);
        l->done = moved = true;
    }
    return l->done || leave_it(post->state, l) || moved;
}

/* ---- receiving ------------------------------------------------------------------------------------------------------------------------------------ */

static void take_off(td__post *post, int peer)
{
    boxes *s = post->state;
    box *theirs = box_of(post, peer);
    if (!theirs)
        return;
    ring *r = &theirs->to[post->comm->rank];
    uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    const uint64_t tail = atomic_load(&r->tail);
    const bool full = tail - head == RING;
    come **last = &s->first[peer];
    while (*last)
        last = &(*last)->next;
    for (; head < tail; head++) {
        come *c = s->spare;
        if (c)
            s->spare = c->next;
        else if (!(c = td__alloc(sizeof *c)))
            break;
        *c = (come){ NULL, (parcel *)((char *)post->comm->reach.base[peer] + r->place[head % RING]) };
        *last = c;
        last = &c->next;
    }
    atomic_store_explicit(&r->head, head, memory_order_release);
    if (full)
        ring_bell(post, peer);                 /* it may wait for room                                                        */
}

static bool match(td__post *post, td__letter *l)
{
    boxes *s = post->state;
    for (come **at = &s->first[l->peer]; *at; at = &(*at)->next) {
        come *c = *at;
        if (c->p->envelope.tag != l->tag)
            continue;
        *at = c->next;
        l->block = c->p;
        l->step = 1;
        c->next = s->spare;
        s->spare = c;
        return true;
    }
    return false;
}

static bool receive_on(td__post *post, td__letter *l)
{
    char sentence[TD_SENTENCE];
    if (l->step == 0 && (!match(post, l) || td__letter_compare(post, l, &((parcel *)l->block)->envelope, sentence)))
        return false;
    parcel *p = l->block;
    bool moved = false;
    if (p->kind == PIECES) {
        const uint64_t pieces = (l->bytes + TD_STAGE - 1) / TD_STAGE;
        while (l->piece < pieces && l->piece < atomic_load_explicit(&p->filled, memory_order_acquire)) {
            const size_t from = l->piece * TD_STAGE, left = l->bytes - from;
            memcpy(l->data + from, p->data + (l->piece & 1) * TD_STAGE, left < TD_STAGE ? left : TD_STAGE);
            atomic_store_explicit(&p->drained, ++l->piece, memory_order_release);
            ring_bell(post, l->peer);
            moved = true;
        }
        if (l->piece < pieces)
            return moved;
    } else if (l->bytes) {
        memcpy(l->data, p->kind == DIRECT ? (char *)post->comm->reach.base[l->peer] + p->at : p->data, l->bytes);
    }
    atomic_store(&p->state, TAKEN);
    ring_bell(post, l->peer);
    l->done = true;
    return true;
}

/* ---- the table ------------------------------------------------------------------------------------------------------------------------------------ */

static void shm_begin(td__post *post)
{
    boxes *s = post->state;
    s->looks++;
    for (parcel **at = &s->waiting; *at;) {
        parcel *p = *at;
        if (atomic_load(&p->state) != TAKEN) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        s->untaken[p->peer]--;
        put_parcel(post, p);
    }
    for (td__letter *l = post->first; l; l = l->next) {
        box *theirs = !l->sends && l->step == 0 && l->peer != post->comm->rank ? box_of(post, l->peer) : NULL;
        ring *r = theirs ? &theirs->to[post->comm->rank] : NULL;
        if (r && atomic_load(&r->tail) != atomic_load_explicit(&r->head, memory_order_relaxed))
            take_off(post, l->peer);
    }
}

static bool shm_move(td__post *post, td__letter *l)
{
    return l->sends ? send_on(post, l) : receive_on(post, l);
}

static void shm_sleep(td__post *post, uint32_t seen, int idle)
{
    (void)idle;
    box *mine = ((boxes *)post->state)->mine;
    atomic_fetch_add(&mine->sleepers, 1);
    if (atomic_load(&mine->bell) == seen)
        td__futex_sleep(&mine->bell, seen, 20 * 1000 * 1000);
    atomic_fetch_sub(&mine->sleepers, 1);
}

/* well: nobody looks into this rank's parcels any more. Else they are given back at td_finish. */
static void shm_close(td__post *post, bool well)
{
    boxes *s = post->state;
    td__arena *arena = post->comm->reach.arena;
    void (*give_back)(td__arena *, void *) = well ? td__arena_free : td__group_orphan;
    if (!s)
        return;
    for (int i = 0; i < CLASSES; i++)
        while (s->kept[i]) {
            parcel *next = s->kept[i]->next;
            td__arena_free(arena, s->kept[i]);
            s->kept[i] = next;
        }
    while (s->waiting) {
        parcel *next = s->waiting->next;
        give_back(arena, s->waiting);
        s->waiting = next;
    }
    for (td__letter *l = post->first; l; l = l->next)
        if (l->sends && l->block)
            give_back(arena, l->block);
    for (int i = 0; s->first && i < post->comm->size; i++)
        while (s->first[i]) {
            come *next = s->first[i]->next;
            td__free(s->first[i]);
            s->first[i] = next;
        }
    while (s->spare) {
        come *next = s->spare->next;
        td__free(s->spare);
        s->spare = next;
    }
    if (s->mine)
        give_back(arena, s->mine);
    td__free(s->first);
    td__free(s->untaken);
    td__free(s->stalled);
    td__free(s);
}

/* Its parcel may still be looked at. */
static void shm_drop(td__post *post, td__letter *l)
{
    if (l->sends && l->block)
        td__group_orphan(post->comm->reach.arena, l->block);
    l->block = NULL;
}

const td__carrier td__carry_shm = { .open = shm_open_post, .begin = shm_begin, .move = shm_move, .drop = shm_drop, .sleep = shm_sleep, .close = shm_close };
