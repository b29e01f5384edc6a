/* comm/comm_room.h: a communicator and its works. Internal to comm/.
 */
#ifndef TD_COMM_ROOM_H
#define TD_COMM_ROOM_H
#include <pthread.h>
#include "control.h"

typedef enum { TD_WORK_FREE, TD_WORK_QUEUED, TD_WORK_RUNNING, TD_WORK_DONE } td__work_state;

struct td_work {
    td_coll  coll;
    td_comm *comm;
    td_work *next;                         /* in the queue, or among the spare ones                                           */
    td_work *all;                          /* every work of the communicator                                                  */
    _Atomic int state;
    int      code;
    char     sentence[TD_SENTENCE];        /* of an error of this work alone                                                  */
    td_tensor *hold[2];                    /* live until the work has been waited for                                         */
    bool     abandoned;                    /* waited for in vain: the thread still has it and its tensors                     */
    double   checked;                      /* td_test: when peers were last looked at                                         */
};

struct td_comm {
    int rank, size;
    const td_comm_backend *backend;
    void *state;
    td__control *control;                  /* NULL: self                                                                      */
    double timeout;
    uint64_t seq, turn;                    /* collectives issued; those of host memory                                        */

    pthread_mutex_t lock;                  /* of everything below                                                             */
    pthread_cond_t  more, done;
    pthread_t thread;
    bool      thread_up, thread_busy, thread_ended, stop;
    double    progress;                    /* when the thread last ended a work                                              */
    td_work  *head, *tail, *spare, *all;
    _Atomic int pending;                   /* started and not yet run                                                         */
    _Atomic int code;                      /* the communicator has failed                                                     */
    char      sentence[TD_SENTENCE];
};

extern const td_comm_backend td__comm_self, td__comm_shm;
extern const td_comm_host td__comm_host;

/* ---- comm.c ---- */
int  td__comm_fail(td_comm *comm, int code, const char *format, ...) TD_PRINTF(3, 4);
int  td__comm_execute(td_comm *comm, td_coll *coll);              /* in the caller or the thread                              */
int  td__comm_report(td_comm *comm, int code);                    /* the communicator's failure as the calling thread's error   */
td_work *td__work_failed(td_comm *comm, int code);                /* done already; takes the calling thread's error message    */
td_work *td__coll_start_holding(td_comm *comm, const td_coll *coll, td_tensor *a, td_tensor *b);
void td__comm_init(td_comm *comm);                                /* lock and conditions                                       */
void td__comm_trim(td_comm *comm);                                /* frees the works, also those that nobody waited for          */
void td__comm_destroy(td_comm *comm);

/* ---- thread.c ---- */
int  td__comm_thread_start(td_comm *comm);
bool td__comm_thread_stop(td_comm *comm);                         /* false: it hangs in the transport and stays              */
int  td__comm_enqueue(td_comm *comm, td_work *work);
int  td__comm_await(td_comm *comm, td_work *work);                /* until it is done: 0, or negative: given up               */
td_work *td__work_new(td_comm *comm);
void td__work_recycle(td_comm *comm, td_work *work);
void td__work_let_go(td_work *work);                              /* of its tensors                                             */

/* ---- device.c ---- */
td_storage *td__device_storage(td_comm *comm, td_device device, size_t bytes);

/* ---- shm: what open.c hands over ---- */
typedef struct { td__control *control; td__arena *arena; int n; void **base; size_t *bytes; } td__shm_parts;
#endif
