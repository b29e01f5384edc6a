/* tandem/scope.h: scopes own handles.
 *
 * A tensor that an operation returns belongs to the innermost scope of its thread and dies with it. `TD_SCOPE();` at
 * the top of a block ends the scope at the block's closing brace, through any break, continue or return. A thread's
 * root scope is made on first use and closed at the thread's end (or td_finish). td_keep, td_release and td_escape
 * (tandem/tensor.h) are the rest of the vocabulary.
 */
#ifndef TANDEM_SCOPE_H
#define TANDEM_SCOPE_H
#include <tandem/error.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct { uint64_t mark; } td_scope;          /* a level of this thread's stack; pass it back unchanged */

TD_API td_scope td_scope_begin(void);
TD_API void     td_scope_end(td_scope *scope);       /* also ends inner scopes that were forgotten             */

#define TD_PASTE_(a, b) a##b
#define TD_PASTE(a, b) TD_PASTE_(a, b)
#define TD_SCOPE()                                                                                           \
    __attribute__((cleanup(td_scope_end), unused)) td_scope TD_PASTE(td_scope_, __COUNTER__) = td_scope_begin()

/* ---- log lines: to stdout, one line, whole ------------------------------------------------------------------------ */
/* every rank; "[rank 2] " in front when the world is larger than one (unless `tandem run` prefixes every line anyway) */
TD_API void td_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
TD_API void td_log0(const char *format, ...) __attribute__((format(printf, 1, 2)));  /* rank 0 alone, for the job   */

/* ---- memory: what the pool under CPU tensors holds -------------------------------------------------------------- */
/* What a block is for. A tensor that becomes a parameter counts as one from then on. */
typedef enum {
    TD_MEMORY_OTHER,           /* tensors made outside operations, small objects, what nobody has named                */
    TD_MEMORY_PARAMETERS,      /* leaves and their flats, buffers of modules                                           */
    TD_MEMORY_GRADIENTS,       /* of leaves; gradients that only pass through a backward are activations                */
    TD_MEMORY_OPTIMIZER,       /* moments, master weights, averages of weights                                         */
    TD_MEMORY_ACTIVATIONS,     /* results of operations, and what forward and backward need besides                     */
    TD_MEMORY_DATA,            /* batches of loaders, read ahead                                                       */
    TD_MEMORY_WORKSPACE,       /* scratch of GPU kernels and libraries                                                 */
    TD_MEMORY_CATEGORIES
} td_memory_category;
typedef struct { int64_t live_bytes, peak_bytes; } td_memory_part;
typedef struct {
    int64_t live_bytes;        /* handed out now, without the pool's rounding                                  */
    int64_t peak_bytes;        /* the largest live_bytes so far (td_memory_reset_peak starts anew)              */
    int64_t cached_bytes;      /* free in the pool, kept for the next request                                  */
    int64_t system_calls;      /* how often the pool asked the system for memory                               */
    int64_t live_tensors;      /* tensor handles that exist                                                    */
    td_memory_part part[12];   /* by td_memory_category; the live bytes add up, each peak is its category's own          */
    uint64_t reserved[4];
} td_memory_stats;
TD_API const char     *td_memory_category_name(td_memory_category category);      /* "activations"                      */
TD_API td_memory_stats td_memory(void);
TD_API void            td_memory_reset_peak(void);
TD_API void            td_memory_trim(void);         /* give the cached bytes back to the system                  */

TD_API const char *td_version(void);                 /* "0.1.0"                                                  */

#ifdef __cplusplus
}
#endif
#endif
