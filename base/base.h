/* base/base.h: what every room stands on. Internal: never installed.
 *
 * One section per file: error.c callsite.c scope.c pool.c log.c clock.c env.c world.c blackbox.c.
 * The store is in store.h, the plug-in tables in plugin_abi.h.
 */
#ifndef TD_BASE_H
#define TD_BASE_H
#include <stdatomic.h>
#include <stdarg.h>
#include <tandem/scope.h>

#define TD_PRINTF(a, b) __attribute__((format(printf, a, b)))
#define TD_COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- error.c: the sticky first error ---------------------------------------------------------------------------------
 * td__fail is THE breakpoint of the library. `format` says what, expected, got: "td_add: shapes (64,128) and (64,127) do not
 * broadcast at dimension 1". The module path, rank and caller's line are added here. Only the thread's first error is
 * kept; under TD_ERRORS_ABORT it does not return. Returns `code`. */
int  td__fail(int code, const char *format, ...) TD_PRINTF(2, 3);
int  td__vfail(int code, const char *format, va_list args);
/* A thread that the library itself starts calls this first: from then on its td__fail is a td__fail_background, and its
 * td__pending reports only its own errors. It calls td_error_clear before each piece of work, or a later failure stays untold. */
void td__library_thread(void);
/* From a thread of the library: keeps the first such error; the next td__pending of any user's thread adopts it. */
int  td__fail_background(int code, const char *format, ...) TD_PRINTF(2, 3);
int  td__pending(void);                        /* as td_error_pending, and adopts a background error                     */
int  td__pending_here(void);                   /* this thread's own error, 0 or its code; adopts nothing                 */
/* The same sentence on every rank: records `sentence` as it is, adding nothing. */
int  td__fail_verbatim(int code, const char *sentence);
/* comm registers how to stop the other ranks before this process aborts. NULL removes it. */
void td__on_abort(void (*fn)(const char *sentence));
bool td__had_error(void);                      /* was there ever one, also if cleared? (td_finish's exit status)          */

/* ---- callsite.c: the caller's source line, 8 bytes in a call, resolved only when printed ---------------------------------
 * TD_ENTER() opens every public function that can fail. A return address inside the library itself keeps the site of the
 * outer public call, so that td_forward's line is not replaced by a line of ours. */
#define TD_HIDDEN __attribute__((visibility("hidden")))
/* Not initial-exec: that would put all thread-local variables of the library into the small space that dlopen shares.         */
extern TD_HIDDEN __thread const void *td__site;
extern TD_HIDDEN uintptr_t td__text_low, td__text_size;   /* of libtandem.so; size 0 when linked statically               */
static inline void td__enter(const void *return_address)
{
    if ((uintptr_t)return_address - td__text_low >= td__text_size)
        td__site = return_address;
}
#define TD_ENTER() td__enter(__builtin_return_address(0))
/* "train.c:41", or "main+0x1f" without debug information, or td_here's line when site is the current one. Allocates. */
const char *td__site_text(const void *site, char *into, size_t size);

/* ---- scope.c: the handle stack of a thread -----------------------------------------------------------------------------
 * An object that scopes can own begins with a td__scoped. The scope holds one reference; drop gives it back. */
typedef struct td__scoped {
    void (*drop)(struct td__scoped *object);
    void *stack;                               /* the owning thread's stack; NULL: in no scope                            */
    uint32_t slot;
} td__scoped;
void td__scope_add(td__scoped *object);        /* to the innermost scope of this thread (drop is set)                     */
bool td__scope_remove(td__scoped *object);     /* out of every scope, without drop; false: was in none, or another thread's */
bool td__scope_escape(td__scoped *object);     /* to the enclosing scope                                                  */
bool td__scope_holds(const td__scoped *object);   /* is it in the innermost scope of this thread?                         */
void td__scope_close_root(void);               /* td_finish: drop all of this thread's                                    */
td_scope td__scope_begin_labelled(const char *label);   /* label: full module path, must outlive the scope                  */
const char *td__scope_label(void);             /* innermost label, or NULL                                                */

/* ---- pool.c: the caching allocator under CPU tensors and small objects -------------------------------------------------------
 * 64-byte aligned, thread-safe. NULL only after td__fail(TD_ERR_MEMORY). Size classes keep waste under 1/8 above 1 KiB. Steady
 * state asks the system for nothing. bytes 0 is fine. */
void *td__alloc(size_t bytes);
/* td__alloc counts as TD_MEMORY_OTHER; this as `category`. td__pool_label changes it later. */
void *td__alloc_as(size_t bytes, td_memory_category category);
void  td__pool_label(void *block, td_memory_category category);
/* What a tensor's memory that this thread asks for counts as. Set for the length of a forward, a backward, … and put back. */
extern TD_HIDDEN __thread td_memory_category td__memory_now;
void *td__calloc(size_t bytes);                /* zeroed                                                                  */
void  td__free(void *block);                   /* NULL is fine                                                            */
void *td__grow(void *block, size_t old_bytes, size_t new_bytes);   /* like realloc; old block stays valid on failure        */
char *td__strdup(const char *text);
void  td__count_tensor(int delta);             /* live_tensors of td_memory                                               */
void  td__pool_fail_after(int64_t n);          /* tests: the n-th request from now fails (1: the next), once; -1: off       */

/* ---- log.c ---------------------------------------------------------------------------------------------------------------- */
void td__say(const char *format, ...) TD_PRINTF(1, 2);   /* to stderr: "[tandem] …" or "[tandem rank 2] …", one write       */
void td__info(const char *format, ...) TD_PRINTF(1, 2);  /* td__say, silent under TANDEM_QUIET: hints, reports, never errors */

/* ---- clock.c -------------------------------------------------------------------------------------------------------------- */
double  td__now(void);                         /* seconds, CLOCK_MONOTONIC: the same on all processes of a host             */
int64_t td__now_ns(void);
int64_t td__wall_ns(void);                     /* CLOCK_REALTIME: for moments that other processes or people read            */

/* ---- env.c: the one table of environment variables; getenv is called nowhere else ------------------------------------------
 * X(id, name, default text for the help, help). Launchers' own variables (RANK, OMPI_…, SLURM_…) are world.c's table. */
#define TD_ENV_LIST(X)                                                                                                       \
    X(DEVICE, "TANDEM_DEVICE", "auto", "cpu, cuda or cuda:N: the device of this rank")                                       \
    X(COMM, "TANDEM_COMM", "auto", "auto, shm, hier, mpi or store: what carries collectives of CPU tensors; nccl: auto, and NCCL even alone") \
    X(NCCL, "TANDEM_NCCL", "libnccl.so.2", "the NCCL library that carries collectives of GPU tensors")                        \
    X(TIMEOUT, "TANDEM_TIMEOUT", "300", "seconds that any wait for another rank may take")                                   \
    X(THREADS, "TANDEM_THREADS", "the rank's share of cores", "OpenMP threads of this rank")                                 \
    X(ISA, "TANDEM_ISA", "auto", "baseline, avx2 or avx512: instruction set of the CPU kernels")                             \
    X(CONV, "TANDEM_CONV", "auto", "direct: convolutions on the CPU never by Winograd's algorithm, which rounds twice as much and is up to 2.5 times faster") \
    X(TF32, "TANDEM_TF32", "0", "1: f32 matrix products on GPUs through tensor cores, of numbers rounded to 10 bits")          \
    X(CUDNN, "TANDEM_CUDNN", "heuristic", "measure: time several of cuDNN's kernels for a convolution when its shape is first met; off: never cuDNN") \
    X(GEMM, "TANDEM_GEMM", "heuristic", "measure: time several algorithms of a matrix product on a GPU when its shape is first met")   \
    X(GEMM_FILE, "TANDEM_GEMM_FILE", "none", "the algorithms that were measured: read by every rank and run, added to where measured") \
    X(RUNTIME_DIR, "TANDEM_RUNTIME_DIR", "$XDG_RUNTIME_DIR/tandem or /tmp/tandem-UID", "where black boxes lie")               \
    X(PLUGIN_DIR, "TANDEM_PLUGIN_DIR", "beside libtandem.so", "folders (a:b) where libtandem-mpi.so and libtandem-cuda.so are looked for") \
    X(QUIET, "TANDEM_QUIET", "0", "1: no informational lines, only errors")                                                  \
    X(ANOMALY, "TANDEM_ANOMALY", "0", "1: the first operation that makes NaN or Inf from finite numbers is an error")         \
    X(TERMINAL, "TANDEM_TERMINAL", "set by tandem run", "columns of the terminal that shows this rank's output; 0: none")    \
    X(RANK, "TANDEM_RANK", "set by tandem run", "this process's rank")                                                       \
    X(SIZE, "TANDEM_SIZE", "set by tandem run", "number of ranks")                                                           \
    X(LOCAL_RANK, "TANDEM_LOCAL_RANK", "set by tandem run", "rank on this host")                                             \
    X(LOCAL_SIZE, "TANDEM_LOCAL_SIZE", "set by tandem run", "ranks on this host")                                            \
    X(NODE_RANK, "TANDEM_NODE_RANK", "set by tandem run", "number of this host in the job, from 0")                           \
    X(HOSTS, "TANDEM_HOSTS", "set by tandem run", "number of hosts in the job")                                              \
    X(JOB, "TANDEM_JOB", "set by tandem run", "name of the job, unique on this host")                                        \
    X(SECRET, "TANDEM_SECRET", "set by tandem run", "64 hex digits that authenticate the job's sockets")                     \
    X(KEY_FILE, "TANDEM_KEY_FILE", "$HOME/.tandem/key", "the user's key, from which jobs over several hosts that neither tandem run nor MPI started derive their secret") \
    X(ONE_PASS, "TANDEM_ONE_PASS", "auto", "ranks of one host: 1: gradients are summed by the optimizer's step, in one pass over them; 0: in buckets during backward; auto: measured") \
    X(ALGORITHM, "TANDEM_ALGORITHM", "auto", "ring, hier, halving or mpi: how large tensors are summed between hosts; auto: measured at start") \
    X(PRETEND_HOSTS, "TANDEM_PRETEND_HOSTS", "none", "for tests, with TANDEM_COMM=hier: the host of each rank, 0,0,1, as if they were on several") \
    X(STORE, "TANDEM_STORE", "set by tandem run", "address of the meeting-point store: unix:@NAME or tcp:HOST:PORT")
typedef enum {
#define TD_ENV_ENUM(id, name, standard, help) TD_ENV_##id,
    TD_ENV_LIST(TD_ENV_ENUM)
#undef TD_ENV_ENUM
    TD_ENV_COUNT
} td__env_id;
typedef struct { const char *name, *standard, *help; } td__env_row;
extern const td__env_row td__env_table[TD_ENV_COUNT];
const char *td__getenv(const char *name);      /* for td__world_find                                                       */
const char *td__env(td__env_id id);            /* the value, or NULL when unset or empty                                  */
/* A number in [low, high], or `standard` when unset; anything else is td__fail(TD_ERR_ARGUMENT) and `standard`. */
double td__env_number(td__env_id id, double standard, double low, double high);

/* ---- world.c: who am I among whom ---------------------------------------------------------------------------------------------- */
typedef struct {
    int  rank, size, local_rank, local_size;   /* local: on this host; local_size 0 and local_rank -1: not known            */
    char launcher[16];                         /* "tandem", "torchrun", "openmpi", "pmi", "slurm", "mpi" (td_init_mpi), "none" */
    char job[128];                             /* unique on this host for the life of the job; names sockets and black boxes */
    bool has_secret;
    unsigned char secret[32];
    bool offers_mpi;                           /* this process can call MPI_Init and be this rank: Open MPI's or PMIx's variables say so */
} td__world;
/* From a table of variables, so that tests can feed made-up environments; get = getenv in life. Order and rules: docs/design/ranks.md.
 * 0, or a negative code with the sentence in `error` (no td__fail here). */
int  td__world_find(const char *(*get)(const char *name), td__world *out, char *error, size_t error_size);
const td__world *td__world_now(void);          /* a world of one until td__world_set                                      */
void td__world_set(const td__world *world);

/* ---- blackbox.c: what this rank is doing, in a small mapped file that survives kill -9 --------------------------------------------
 * RUNTIME_DIR/JOB.RANK.box, one page, mode 0600 in a 0700 folder of ours. Removed when the job ends well, kept otherwise; old ones
 * (owner process gone, older than a day) are swept at open. */
typedef enum { TD_BOX_RUNNING = 1, TD_BOX_FINISHED, TD_BOX_FAILED } td__box_state;
typedef struct {
    char     magic[8];                         /* "TDBOX1\0"                                                              */
    int32_t  pid, rank, size;
    _Atomic int32_t state;                     /* td__box_state                                                           */
    int64_t  started_ns;                       /* CLOCK_REALTIME                                                          */
    _Atomic uint64_t collectives;              /* entered so far                                                          */
    char     doing[192];                       /* "all_reduce(f32, 1000) #17 of world"; "" outside collectives             */
    char     last[192];                        /* the last one left                                                       */
    char     module[256];                      /* file that holds the call site …                                         */
    uint64_t offset;                           /* … and the place in it                                                   */
    _Atomic int64_t error_ns;                  /* CLOCK_REALTIME of the first error; 0: none                              */
    char     error[1536];                      /* its sentence                                                            */
    int32_t  error_code;                       /* its td_error: PEER and ABORTED only follow from another rank's            */
} td__box;
int      td__box_open(void);                   /* for td__world_now(); a failure only warns (logs) and works without file   */
td__box *td__box_get(void);                    /* never NULL: a private page when there is no file                        */
const char *td__box_path(void);                /* "" when there is no file                                                */
void     td__box_close(bool well);             /* removes the file when all went well                                     */
/* the launcher's side: read a box read-only; 0 or negative */
int      td__box_read(const char *path, td__box *into);
const char *td__runtime_dir(char *into, size_t size);   /* made when missing                                               */

#endif
