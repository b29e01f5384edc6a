/* plugins/cuda/nccl_impl.h: collectives between GPUs by NCCL.
 *
 *   nccl_library.c  libnccl.so.2, opened when first needed; what this file declares of it
 *   nccl.c          a communicator's life: opening, errors, abort, close
 *   nccl_start.c    one td_coll as one call of NCCL on the communication stream
 *   nccl_parts.c    those that NCCL has no call for: groups of messages
 *   nccl_memory.c   memory that NCCL sends from without copying
 *
 * NCCL's header need not be there when this is built, and any version from 2.19 on will do when it runs: the few names, numbers and
 * structures that are used are part of its stable binary interface (tests/cuda/test_nccl_abi.c holds them to the header where there is one).
 */
#ifndef TD_CUDA_NCCL_IMPL_H
#define TD_CUDA_NCCL_IMPL_H
#include "cuda_impl.h"
#include <comm_impl.h>
#include <pthread.h>

enum { NCCL_OLDEST = 21900, NCCL_CONFIG_SINCE = 21800 };
enum { NCCL_OK = 0, NCCL_REMOTE_ERROR = 6, NCCL_IN_PROGRESS = 7 };
enum { NCCL_UINT8 = 1, NCCL_INT32 = 2, NCCL_INT64 = 4, NCCL_FLOAT16 = 6, NCCL_FLOAT32 = 7, NCCL_FLOAT64 = 8, NCCL_BFLOAT16 = 9 };
enum { NCCL_SUM = 0, NCCL_PRODUCT = 1, NCCL_MAX = 2, NCCL_MIN = 3, NCCL_AVG = 4, NCCL_SCALAR_HOST = 1 };
typedef struct ncclComm *nccl_comm;
typedef struct { char bytes[TD_COMM_ID]; } nccl_id;
typedef struct {                               /* as it was in 2.18; newer versions read as much as `size` says                  */
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
} nccl_config;

/* X(member, its name in the library, arguments) */
#define NCCL_FUNCTIONS(X)                                                                                                                 \
    X(get_version, "ncclGetVersion", (int *version))                                                                                     \
    X(get_id, "ncclGetUniqueId", (nccl_id *id))                                                                                          \
    X(init, "ncclCommInitRankConfig", (nccl_comm *comm, int ranks, nccl_id id, int rank, nccl_config *config))                            \
    X(async_error, "ncclCommGetAsyncError", (nccl_comm comm, int *error))                                                                 \
    X(finalize, "ncclCommFinalize", (nccl_comm comm))                                                                                     \
    X(destroy, "ncclCommDestroy", (nccl_comm comm))                                                                                       \
    X(abort, "ncclCommAbort", (nccl_comm comm))                                                                                           \
    X(mem_alloc, "ncclMemAlloc", (void **into, size_t bytes))                                                                             \
    X(mem_free, "ncclMemFree", (void *block))                                                                                             \
    X(enroll, "ncclCommRegister", (nccl_comm comm, void *block, size_t bytes, void **handle))                                             \
    X(resign, "ncclCommDeregister", (nccl_comm comm, void *handle))                                                                       \
    X(premul, "ncclRedOpCreatePreMulSum", (int *op, void *scalar, int dtype, int residence, nccl_comm comm))                              \
    X(premul_free, "ncclRedOpDestroy", (int op, nccl_comm comm))                                                                          \
    X(all_reduce, "ncclAllReduce", (const void *in, void *out, size_t n, int dtype, int op, nccl_comm comm, cudaStream_t stream))         \
    X(reduce, "ncclReduce", (const void *in, void *out, size_t n, int dtype, int op, int root, nccl_comm comm, cudaStream_t stream))      \
    X(send, "ncclSend", (const void *in, size_t n, int dtype, int peer, nccl_comm comm, cudaStream_t stream))                             \
    X(receive, "ncclRecv", (void *out, size_t n, int dtype, int peer, nccl_comm comm, cudaStream_t stream))                               \
    X(group_start, "ncclGroupStart", (void))                                                                                              \
    X(group_end, "ncclGroupEnd", (void))                                                                                                  \
    X(broadcast, "ncclBroadcast", (const void *in, void *out, size_t n, int dtype, int root, nccl_comm comm, cudaStream_t stream))        \
    X(reduce_scatter, "ncclReduceScatter", (const void *in, void *out, size_t n, int dtype, int op, nccl_comm comm, cudaStream_t stream)) \
    X(all_gather, "ncclAllGather", (const void *in, void *out, size_t n, int dtype, nccl_comm comm, cudaStream_t stream))

typedef struct {
#define NCCL_MEMBER(member, name, arguments) int (*member) arguments;
    NCCL_FUNCTIONS(NCCL_MEMBER)
#undef NCCL_MEMBER
    const char *(*error_string)(int result);
    const char *(*last_error)(nccl_comm comm);
    int version;
} nccl_library;

typedef struct nccl_state {
    struct nccl_state *next;                   /* nccl_memory.c's list                                                            */
    pthread_mutex_t lock;                      /* of comm: abort comes from another thread                                        */
    nccl_comm comm;                            /* NULL: aborted                                                                   */
    const nccl_library *lib;
    int index, rank, ranks;
    cudaStream_t stream;                       /* the communication stream                                                        */
    cudaEvent_t ready;                         /* of the compute stream                                                           */
    void *byte;                                /* what a barrier sends                                                            */
} nccl_state;

extern const td_device_comm nccl_comm_ops;
/* nccl_library.c: NULL with the reason */
const nccl_library *nccl_open_library(char *error, size_t size);
bool nccl_describe(char *into, size_t size);                   /* "2.28.9", or false and why there is none                         */
/* nccl.c */
int  nccl_failed(const nccl_state *s, int result, const char *call, char *error, size_t size);    /* TD_ERR_PEER or TD_ERR_DEVICE */
/* Until NCCL has done what it was asked on the host. Under the lock, which is given up meanwhile. */
int  nccl_settle(nccl_state *s, int result, const char *call, const td_patience *patience, char *error, size_t size);
/* nccl_parts.c: gather, scatter, all_to_all and uneven all_gather as one group of messages. Under the lock. NCCL's result, with the name of the call. */
int  nccl_parts(nccl_state *s, const td_coll *coll, const void *in, const char **name);
/* nccl_start.c */
int  nccl_type(td_dtype t);                                    /* -1: none                                                         */
int  nccl_start(void *state, const td_coll *coll, void *begin, void *end, const td_patience *patience, char *error, size_t size);
/* nccl_memory.c */
void *nccl_alloc(int index, size_t bytes);
void  nccl_free(int index, void *block);
void  nccl_memory_enroll(nccl_state *s);       /* all blocks, with a new communicator                                            */
void  nccl_memory_resign(nccl_state *s);       /* before it ends; under its lock                                                 */
void  nccl_memory_leave(nccl_state *s);        /* before it is freed; without its lock                                           */
#endif
