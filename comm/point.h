/* comm/point.h: messages between two ranks of a communicator. Internal to comm/.
 *
 *   messages.c    the public functions: check, make a letter, wait for it
 *   point.c       a communicator's post: its open letters in the order of the calls, who moves them on, who waits, what goes wrong
 *   point_shm.c   letters between ranks of one host through their arenas
 *   point_wire.c  letters over the transport's wire (MPI)
 *
 * A letter is one send or one receive. Whoever waits moves all open letters of the communicator on; while there are started ones a thread does so,
 * too. Everything here is under the post's lock, which is never held while sleeping.
 */
#ifndef TD_POINT_H
#define TD_POINT_H
#include "comm_room.h"

enum { TD_TAGS = 1 << 20 };                    /* tags are 0 … TD_TAGS - 1: three of the wire's for each                       */

typedef struct td__letter {
    struct td__letter *next;                   /* open ones of the post, in the order of the calls; or spare                   */
    struct td__letter *all;
    td_comm *comm;
    bool     sends, started, done;
    int      peer, tag;                        /* peer: rank of comm                                                          */
    td_dtype dtype;
    int64_t  count;
    size_t   bytes;
    char    *data;                             /* a sender's is only read                                                     */
    uint64_t seq;                              /* of the communicator's letters, from 1                                        */
    const void *site;
    td_tensor *hold;
    double   since;                            /* when it was last moved on                                                   */
    int      step;                             /* the carrier's: 0 is new                                                      */
    struct td__letter *before, *after;         /* of the same peer, direction and tag: wire: one may not begin before …          */
    bool     released;                         /* … the one before it says so                                                  */
    void    *block;                            /* shm: what travels                                                            */
    uint64_t piece;                            /* shm: pieces moved                                                            */
    struct td__parcel *parcel;                 /* wire: requests and what they point to                                        */
} td__letter;

typedef struct td__post td__post;
typedef struct {
    int  (*open)(td__post *post);              /* 0 or negative after td__fail                                                */
    void (*begin)(td__post *post);             /* of each look at the letters; NULL: nothing                                    */
    bool (*move)(td__post *post, td__letter *letter);  /* as far as it goes without waiting; true: something happened. Sets done. */
    void (*drop)(td__post *post, td__letter *letter);  /* a letter that failed; NULL: nothing                                  */
    void (*sleep)(td__post *post, uint32_t seen, int idle);   /* until something may have happened, 20 ms at most; without the lock */
    void (*close)(td__post *post, bool well);
} td__carrier;

struct td__post {
    td_comm *comm;
    const td__carrier *carrier;
    void    *state;                            /* the carrier's                                                               */
    pthread_mutex_t lock;                      /* of all this                                                                 */
    pthread_cond_t  work;                      /* for the thread: a letter was started                                         */
    td__letter *first, *last, *spare, *every;
    int      started;                          /* open letters that the thread moves on                                        */
    uint64_t seq;
    _Atomic uint32_t *bell;                    /* changes when something may have happened; shm: in shared memory              */
    _Atomic uint32_t own_bell;
    td__control view;                          /* the control page with a memory of its own: several threads look              */
    pthread_t thread;
    bool     thread_up, stop;
};

extern const td__carrier td__carry_shm, td__carry_wire, td__carry_self;

/* ---- point.c ---- */
int  td__post_open(td_comm *comm);                                /* if it is not open yet: 0 or negative after td__fail        */
/* A letter on its way; NULL after td__fail. */
td__letter *td__letter_new(td_comm *comm, bool sends, bool started, int peer, int tag, void *data, td_dtype dtype, int64_t count, td_tensor *hold);
int  td__letter_wait(td__letter *letter);                         /* and frees it: 0 or negative after td__fail                 */
bool td__letter_test(td__letter *letter);                         /* done, or failed                                            */
/* Receiver's part when a letter has come: is it what it waits for? 0, or a negative code with the sentence, recorded. */
typedef struct { int64_t count; uint64_t seq, site, exe_id; int32_t dtype, tag; } td__envelope;
void td__envelope_of(const td__letter *letter, td__envelope *into);
int  td__letter_compare(td__post *post, td__letter *letter, const td__envelope *theirs, char sentence[TD_SENTENCE]);
void td__letter_release(td__letter *letter);
void td__letter_failed(td__post *post, int code, const char *sentence);     /* on all ranks that the control page reaches         */
/* ---- control.c ---- */
void td__futex_sleep(_Atomic uint32_t *word, uint32_t value, int64_t ns);
void td__futex_wake_all(_Atomic uint32_t *word);
#endif
