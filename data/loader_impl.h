/* data/loader_impl.h: a loader from inside: what its threads (prefetch.c) and the user's end (loader.c) share. Internal to data/.
 *
 * One mutex guards all positions and states. A slot's contents belong to the thread that claimed it until it is READY or FAILED,
 * then to the user's thread until it is FREE again.
 *
 * Where the CPU cannot reach the device's memory, threads write into pinned host memory and send it on the loader's own stream, a batch or
 * more ahead of the user. Three waits keep it right, none of them the user's thread's:
 *   the stream waits for `passed`, recorded on the compute stream when the user gave the slot's last batch back: its tensors are not overwritten
 *   while kernels read them;
 *   the compute stream waits for `copied`, recorded on the loader's stream, when the user takes the batch;
 *   a thread waits for `copied` before it writes the slot's host memory again, which was long ago.
 */
#ifndef TD_LOADER_IMPL_H
#define TD_LOADER_IMPL_H
#include "data_impl.h"
#include <pthread.h>

typedef enum { TD__SLOT_FREE, TD__SLOT_CLAIMED, TD__SLOT_READY, TD__SLOT_FAILED, TD__SLOT_HELD } td__slot_state;

typedef struct {
    td__slot_state state;
    int64_t     rows, epoch;
    float      *raw;                           /* one picture as it was read, when the loader augments */
    td_tensor  *tensor[TD__MAX_FIELDS + 1];    /* the fields', then the sample numbers; capacity is the storage's */
    void       *host[TD__MAX_FIELDS + 1];      /* where threads write: the storage itself when the CPU can reach it */
    int64_t    *ids;                           /* the sample numbers: host's last, or apart from it where that is being copied */
    void       *copied, *passed;               /* events; NULL when the CPU can reach the device */
    int         code;                          /* when FAILED: why */
    char        why[1024];
} td__slot;

typedef struct { int64_t epoch, k; } td__position;

struct td_loader {
    td_dataset *data;
    int64_t   batch, batches;
    int       part, parts;
    bool      shuffle;
    uint64_t  seed;
    td_device device;
    const td_device_ops *ops;
    void      *stream;                         /* copies to the device; NULL when the CPU can reach it */

    pthread_mutex_t lock;
    pthread_cond_t  work, ready, idle;         /* a slot became free; a batch became ready; a thread finished reading */
    pthread_t *thread;
    int       threads, started;
    bool      stop, paused;
    int       busy;                            /* threads that are reading now */
    td__slot *slots;
    int       n_slots, claim_slot, take_slot;
    td__position claim, take;                  /* the next batch to be read, to be handed out */
    td__slot *held;
    int64_t  *order, order_epoch;              /* of the epoch that is being claimed; NULL without shuffle */
    double    waited;
    bool      augments;
    td_augment augment;                        /* its mean and std are the loader's own */

    td_loader *next, *prev;
};

/* Of one row of field i; field n_fields are the sample numbers. */
static inline size_t td__loader_field_bytes(const td_loader *l, size_t i)
{
    return i < l->data->n_fields ? l->data->bytes[i] : sizeof(int64_t);
}

int td__loader_start(td_loader *l);            /* the threads; 0, or td__fail */

#endif
