/* tensor/tensor_impl.h: tensors from inside. Internal.
 *
 * handle (td_tensor, reference-counted; a scope, a graph node, a module each hold a reference)
 *   -> storage (td_storage, reference-counted; a version that in-place changes bump) -> memory of a device.
 */
#ifndef TD_TENSOR_IMPL_H
#define TD_TENSOR_IMPL_H
#include <base.h>
#include <stddef.h>
#include <tandem/tensor.h>

struct td_kernels;

/* What a kernel met that the host does not wait for: the number of the check (trap.c), the first position, what stands there. */
typedef struct { int64_t check, position, value; } td_trapped;

/* ---- device.c: the device interface. One constant table per kind of device. -------------------------------------------------- */
typedef struct td_device_ops {
    const char *name;                                          /* "cpu"                                                    */
    td_device_kind kind;
    bool  host_memory;                                         /* may the CPU read its pointers?                          */
    bool  computes_half;                                       /* do its kernels take f16 and bf16? else f32 copies do      */
    bool  channels_last;                                       /* do its kernels of images take NHWC? else NCHW copies do;
                                                                  only where it computes_half                              */
    int   (*count)(void);                                      /* how many such devices this process may use               */
    void *(*alloc)(int index, size_t bytes);                   /* 64-byte aligned, caching; NULL after td__fail             */
    void  (*free)(int index, void *block);
    int   (*copy)(int index, void *to, bool to_host, const void *from, bool from_host, size_t bytes);  /* in stream order   */
    int   (*synchronize)(int index);                           /* host waits for all work                                 */
    void *(*stream_new)(int index, bool high_priority);        /* streams and events: CPU ones are no-ops                   */
    void  (*stream_free)(int index, void *stream);
    void *(*event_new)(int index);
    int   (*event_record)(int index, void *event, void *stream);
    int   (*event_wait)(int index, void *event, void *stream);
    void  (*event_free)(int index, void *event);
    void *(*event_new_timed)(int index);                       /* one that carries a time; NULL: the device has none        */
    int   (*event_ms)(int index, void *from, void *to, double *ms);    /* between two; 1: they have not passed yet; never waits   */
    int   (*times_begin)(int index);                           /* NULL: kernels are not timed (td_kernel_times_begin)      */
    int   (*times_end)(int index, td_kernel_time *into, int room);
    int   (*event_done)(int index, void *event);               /* 1: passed, 0: not yet; negative (no td__fail): the device has failed */
    int   (*memory)(int index, td_memory_stats *into);         /* all but live_tensors; NULL: not counted                  */
    bool  (*trapped)(bool wait, td_trapped *into);             /* has an index check failed? Looks without waiting, and waits for the device's
                                                                  work when it has or when told to. NULL: kernels say it at once (*bad)    */
    void  (*trap_clear)(void);                                 /* after it was told: kernels may step weights again, in stream order        */
    const int32_t *(*trap_word)(void);                         /* in the device's memory, not 0 from a failed check until it is cleared; NULL: none
                                                                  was made. The row may be NULL, too                                   */
    /* From begin to end what this thread starts on the compute stream is recorded and not run; end makes a graph of it (graph NULL: it is given up).
     * What was allocated meanwhile stays reserved until the graph is freed. NULL: the device has no graphs. */
    int   (*graph_begin)(int index);
    int   (*graph_end)(int index, void **graph);
    int   (*graph_launch)(int index, void *graph);             /* in stream order                                            */
    void  (*graph_free)(int index, void *graph);
    int   (*event_synchronize)(int index, void *event);        /* the host waits for what was recorded last; NULL: no need  */
    void  (*memory_reset_peak)(int index);                     /* NULL where `memory` is                                    */
    void  (*memory_trim)(int index);
    /* Of blocks from alloc; NULL: nothing to do. label: its td_memory_category. record: work on `stream`, not the compute stream, uses the
     * block; after `free` it is handed out again only when what that stream was told before the `free` is done. Nobody waits. */
    void  (*label)(int index, void *block, td_memory_category category);
    int   (*record)(int index, void *block, void *stream);
    /* Host memory that the device copies from and to by itself, cached; NULL on the CPU. Only copies that have been waited for may still
     * know a block that is given back. */
    void *(*host_alloc)(int index, size_t bytes);              /* NULL after td__fail                                       */
    void  (*host_free)(int index, void *block);
    /* Between the device and memory of host_alloc, in the order of `stream` (NULL: the compute stream); neither side may be touched before
     * that is waited for. From any thread. */
    int   (*copy_async)(int index, void *to, const void *from, size_t bytes, bool to_host, void *stream);
    const struct td_kernels *kernels;                          /* NULL on the CPU: td__cpu_kernels()                       */
    const struct td_device_comm *comm;                         /* collectives of its memory (comm_impl.h); NULL: none        */
} td_device_ops;
const td_device_ops *td__device_ops(td_device device);          /* NULL after td__fail when there is no such device         */
int  td__device_register(const td_device_ops *ops);             /* what a plug-in brings (opened when CUDA is first wanted)  */
const td_device_ops *td__device_registered(td_device_kind kind);   /* what it brought; NULL: it was not wanted yet, or brings none */
/* td_init: TD_DEFAULT finds the device anew (TANDEM_DEVICE, else GPU by local rank where the plug-in loads, else the CPU). */
int  td__device_set_default(td_device device);
/* The rule behind it, for tests: 0, or a negative code with the sentence in `error`. local_rank -1, local_size 0: not known. */
int  td__device_find(const char *text, int local_rank, int local_size, td_device *out, char *error, size_t size);
const char *td__device_text(td_device device, char into[static 24]);   /* "cuda:1"                                          */
bool td__device_equal(td_device a, td_device b);

/* ---- dtype.c: single elements by dtype (rules in convert.h) ----------------------------------------------------------------------- */
int    td__dtype_check(const char *who, td_dtype dtype);        /* 0, or td__fail                                          */
double td__element_get(td_dtype dtype, const void *at);
void   td__element_put(td_dtype dtype, void *at, double value);
static inline bool td__is_float(td_dtype t) { return t == TD_F32 || t == TD_F64; }              /* what "float" rows take   */
static inline bool td__is_half(td_dtype t) { return t == TD_F16 || t == TD_BF16; }
static inline bool td__is_real(td_dtype t) { return td__is_float(t) || td__is_half(t); }         /* what can have a gradient  */
static inline bool td__is_arith(td_dtype t) { return td__is_float(t) || t == TD_I64 || t == TD_I32; }

/* ---- storage.c ------------------------------------------------------------------------------------------------------------------- */
/* Something still writes to a storage (ddp: a started all-gather of weights). wait returns when it has, and takes itself off the storage. */
typedef struct td__late { void (*wait)(struct td__late *late); } td__late;
typedef struct td_storage {
    _Atomic int32_t refs;
    uint32_t version;                                           /* bumped by in-place changes                              */
    void *data;
    size_t bytes;
    td_device device;
    const td_device_ops *ops;
    struct td_storage *base;                                    /* data lies inside this one, which is kept alive            */
    void (*release)(void *owner, void *data);                   /* foreign memory: arena, user; NULL: the device's           */
    void *owner;
    td__late *late;                                             /* NULL: data is there. Who takes data without td__ptr settles first */
} td_storage;
static inline void td__settle(const td_storage *s)
{
    if (__builtin_expect(s->late != NULL, 0))
        s->late->wait(s->late);
}
td_storage *td__storage_new(td_device device, size_t bytes);                    /* refs 1; NULL after td__fail                */
td_storage *td__storage_new_as(td_device device, size_t bytes, td_memory_category category);
void td__storage_label(td_storage *s, td_memory_category category);   /* nothing where it lies in another or is foreign        */
/* Work on `stream` uses s from now on (td_device_ops.record, of the block that s lies in). 0 or a negative code. */
int  td__storage_record(td_storage *s, void *stream);
td_storage *td__storage_foreign(td_device device, void *data, size_t bytes, void (*release)(void *, void *), void *owner);
/* For memory that is laid out by somebody else (captured steps): gives the block back, data is NULL; then puts it at `data`, which outlives it; or gives
 * it a block of its own again, 0 or negative after td__fail. Contents are lost. */
void td__storage_empty(td_storage *s);
void td__storage_put(td_storage *s, void *data);
int  td__storage_refill(td_storage *s);
void td__storage_borrowed(void *owner, void *data);             /* a release that does nothing                             */
void td__storage_ref(td_storage *s);
void td__storage_unref(td_storage *s);
/* Move s's contents to `offset` bytes inside base (same device): data is copied, the old memory freed, base kept. Every view of s
 * sees the new place. How parameters and gradients get into flats. A storage that others lie in must not be moved itself. */
int  td__storage_relocate(td_storage *s, td_storage *base, size_t offset);

/* ---- tensor.c ------------------------------------------------------------------------------------------------------------------- */
struct td_tensor {
    td__scoped scoped;                                          /* first member                                            */
    _Atomic int32_t refs;
    int32_t kept;                                               /* td_keep minus td_release                                */
    td_dtype dtype;
    td_shape shape;
    int64_t stride[TD_MAX_DIMS];                                /* in elements; 0 where expanded                            */
    int64_t offset;                                             /* elements from storage->data                             */
    td_storage *storage;                                        /* NULL only for the poisoned tensor                       */
    void *graph;                                                /* autograd's; td__tensor_graph_free releases it            */
    td_tensor *divisor;                                         /* a loss's stamp, or NULL (referenced)                     */
    double number; uint32_t number_version;                     /* a scalar whose value the host knows, while the storage's  */
    bool number_known;                                          /* version is this: see td__number_of                      */
    bool poisoned;
    void *owner;                                                /* nn's: the module slot a parameter or buffer belongs to   */
};
extern void (*td__tensor_graph_free)(td_tensor *x);             /* set by autograd; must be iterative                       */
/* Set by autograd: may x be written in place from outside an operation (td_assign, td_fill, td_copy_in)? 0, or negative after td__fail. */
extern int (*td__tensor_inplace_check)(td_tensor *x);

td_tensor *td__poison(void);                                    /* the poisoned tensor; never freed                        */
/* The following return a handle with one reference and in no scope; poison after td__fail. */
td_tensor *td__tensor_new(td_shape shape, td_dtype dtype, td_device device);                 /* contents undefined           */
td_tensor *td__tensor_view(td_tensor *x, td_shape shape, const int64_t *stride, int64_t offset);  /* shares x's storage        */
td_tensor *td__tensor_on(td_storage *s, td_shape shape, td_dtype dtype, int64_t offset);     /* contiguous, references s      */
void       td__tensor_ref(td_tensor *x);
void       td__tensor_unref(td_tensor *x);
td_tensor *td__scoped_tensor(td_tensor *x);                     /* gives the caller's reference to the innermost scope; returns x */

static inline void *td__ptr(const td_tensor *x)                 /* first element                                           */
{
    td__settle(x->storage);
    return (char *)x->storage->data + (size_t)x->offset * td_dtype_size(x->dtype);
}
const struct td_kernels *td__kernels(const td_tensor *x);       /* of its device                                           */
/* 0, or td__fail when x is NULL or poisoned: how functions that end in a number or a code refuse. */
int td__tensor_check(const char *who, const td_tensor *x);
/* 0, or td__fail when the device has no kernel in this row of its table. */
#define td__need(who, x, row) (td__kernels(x)->row ? 0 : td__kernel_missing(who, x, #row))
int td__kernel_missing(const char *who, const td_tensor *x, const char *row);
/* ---- inplace.c: the same as td_assign, td_fill without the checks that are the user's; they bump the version ------------------------- */
int td__fill(td_tensor *into, double value);
/* A scalar (one element, contiguous) that also the host knows: what stamps of losses are, so that no step reads them. */
int td__fill_known(td_tensor *into, double value);
bool td__number_of(const td_tensor *x, double *value);          /* false: only the device knows                            */
bool td__overlaps(const td_tensor *a, const td_tensor *b);      /* do their elements share bytes? (a safe guess by extent)    */

/* ---- shape.c --------------------------------------------------------------------------------------------------------------------- */
int64_t  td__shape_numel(td_shape s);
bool     td__shape_equal(td_shape a, td_shape b);
void     td__shape_strides(td_shape s, int64_t *stride);        /* C-contiguous                                            */
bool     td__strides_contiguous(td_shape s, const int64_t *stride);
int      td__shape_broadcast(td_shape a, td_shape b, td_shape *out);   /* 0; else 1 + the offending dimension of the result    */
const char *td__shape_text(td_shape s, char into[static 128]);  /* "(64,128)"                                              */
int      td__shape_check(const char *who, td_shape s);          /* ndim 0..8, no negative size, no overflow; td__fail          */
int      td__axis(const char *who, int axis, int ndim);         /* normalised, or negative after td__fail                    */

/* ---- format.c: images with the channels last in memory, (N,H,W,C), under the shape (N,C,H,W) --------------------------------------- */
void td__channels_last_strides(td_shape s, int64_t *stride);    /* of four dimensions                                      */
bool td__channels_last(const td_tensor *x);                     /* was it made in that order?                              */
bool td__lies_channels_last(const td_tensor *x);                /* do its elements lie so? One pixel or channel may lie both ways */
bool td__keeps_channels_last(const td_tensor *x);               /* made so, on a device whose kernels of images take it    */
td_tensor *td__tensor_new_as(td_shape shape, td_dtype dtype, td_device device, bool channels_last);   /* as td__tensor_new  */

/* ---- loop.c: strided loops for kernels -------------------------------------------------------------------------------------------- */
#include "kernels.h"
/* Over `shape`, operands broadcast to it (stride 0); coalesced so that a contiguous loop has ndim 1 (or 0). NULL operands give
 * stride 0. Operand 0 is the output. */
td_loop   td__loop(td_shape shape, td_tensor *out, td_tensor *a, td_tensor *b, td_tensor *c);
/* in's dimensions split by the mask of reduced axes; strides of operand 0 (out, kept dimensions, contiguous) and 1 (in). */
td_reduce_loop td__reduce_loop(td_tensor *in, uint32_t axes);
/* out (contiguous, shape `to`) = or += scale * sum of x over the dimensions that broadcasting `to` to x's shape added. How
 * gradients of broadcast inputs are made; a plain copy when shapes are equal. */
int td__sum_to(td_tensor *x, double scale, td_tensor *into, bool add);
int td__copy(td_tensor *into, td_tensor *from, bool add);       /* same shape, strides and dtypes free; no version bump      */

/* ---- record.c: what a captured step does, in order (td_capture; docs/design/capture.md) ---------------------------------------------
 * While td_capture records, everything that acts on tensors or on what outlives the step notes how it is done once more. What happens inside
 * such a thing is part of it and notes nothing. */
typedef struct td__visitor td__visitor;
struct td__visitor {
    void (*storage)(td__visitor *v, td_storage *s, const char *name);      /* memory                                            */
    void (*number)(td__visitor *v, void *at, size_t bytes, const char *name);   /* of the host: counters                        */
};
/* Which memory an entry touches, for who lays the list out anew (autograd/capture_uses.c). A storage all of whose references are shown by
 * entries is the list's alone: it may be given another place, or none. What one entry does not show stays as it is for all. */
typedef struct td__uses td__uses;
enum { TD__READS = 1, TD__WRITES = 2, TD__FILLS = 4 };           /* FILLS: writes every byte and reads none; 0: it merely holds the tensor */
struct td__uses {
    void (*tensor)(td__uses *u, td_tensor *x, unsigned how);    /* to be called once for each reference that the entry holds   */
    void (*saved)(td__uses *u, td_tensor *x, const void *node); /* x's memory is read by this node's gradient, too             */
};
typedef struct td__record_kind {
    const char *name;
    size_t size;                                                /* of its state                                            */
    int  (*run)(void *state);                                   /* once more; 0, or negative after td__fail                  */
    int  (*host)(void *state);                                  /* the host's part of it, where the device's is in a graph; NULL: none */
    void (*drop)(void *state);                                  /* NULL: the state holds nothing                            */
    void (*visit)(void *state, td__visitor *v);                 /* shows what it changes and what outlives the step; NULL: nothing */
    void (*uses)(void *state, td__uses *u);                     /* NULL: whatever it holds stays as it is                   */
} td__record_kind;
typedef struct td__record {
    struct td__record *next;
    const td__record_kind *kind;
    const void *site;
    max_align_t state[];
} td__record;
typedef struct td__recording {
    td__record *first, *last;
    int depth;                                                  /* things under way                                        */
    int code;                                                   /* the first reason why the step cannot be captured, … */
    const void *reason_site;
    char reason[512];
} td__recording;
extern __thread td__recording *td__recording_now;               /* this thread's; NULL: nobody records                      */
void *td__record_new(const td__record_kind *kind);
void  td__record_refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));
void  td__records_free(td__record *first);
/* Around one such thing. begin returns its state, zeroed, to be filled in; NULL: nobody records, or this is inside another one. */
static inline void *td__record_begin(const td__record_kind *kind)
{
    return td__recording_now && td__recording_now->depth++ == 0 ? td__record_new(kind) : NULL;
}
static inline void td__record_end(void)
{
    if (td__recording_now)
        td__recording_now->depth--;
}
/* In what cannot be recorded (or read by the host: its value would be this step's for ever): the step goes on, td_capture says why not. */
static inline bool td__recorded_here(void) { return td__recording_now && td__recording_now->depth == 0; }
void  td__record_read(const char *who);                         /* the host reads a tensor, or a number that changes            */
void  td__record_copy(td_tensor *into, td_tensor *from);        /* td_to                                                     */
void  td__record_fill(td_tensor *into, double value);
/* x holds what the step alone made, by host memory or numbers: a replay leaves it as it is. Nothing may write to it. */
void  td__record_constant(const char *who, td_tensor *x);
void  td__record_end_constants(td__recording *r);               /* the step is over: has something been written to one?         */

/* ---- trap.c: index checks that a device makes without the host waiting for them ------------------------------------------------------ */
typedef struct td__check td__check;
struct td__check {
    int (*say)(const td__check *c, int64_t position, int64_t value);   /* td__fail with the sentence; td__site and the module path are set    */
    const char *op;                                             /* name of the operation                                  */
    td_shape at, of;                                            /* say's: of the index, of what it looks into                 */
    int64_t size, ignore; int axis; bool has_ignore;
    const void *site; char label[104];                          /* filled by td__check_number                             */
};
/* The number under which a row remembers `check`, made here and now. */
int64_t td__check_number(const td__check *check);
/* Has a check failed on a device? Its sentence is the error from then on, and `td__traps` one more: gradients that were there before are
 * nobody's. wait: for what the device still computes, too. 0, or the error if one was found now. */
int td__trap_look(bool wait);
extern _Atomic uint64_t td__traps;

/* ---- random.c: Philox 4x32-10 (kernels do the bulk) ---------------------------------------------------------------------------- */
#include "philox.h"

#endif
