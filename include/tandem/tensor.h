/* tandem/tensor.h: n-dimensional arrays. Values only; gradients are in autograd.h, algebra in ops.h.
 *
 * A td_tensor is a handle: dtype, device, up to 8 dimensions, strides, and a share of a storage. Views share storage.
 * Shapes in comments: x (N,C). All handles are non-NULL; after a misuse they are the poisoned tensor (error.h).
 */
#ifndef TANDEM_TENSOR_H
#define TANDEM_TENSOR_H
#include <tandem/scope.h>
#ifdef __cplusplus
extern "C" {
#endif

#define TD_MAX_DIMS 8
typedef struct td_tensor td_tensor;
typedef enum { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I64, TD_I32, TD_U8, TD_BOOL } td_dtype;
typedef struct { int ndim; int64_t dim[TD_MAX_DIMS]; } td_shape;
typedef struct { td_tensor *const *list; size_t n; } td_tensors;   /* borrowed; the owner's until it changes */

#ifdef __cplusplus
#define TD_LITERAL(type) type
extern "C++" template <class... D> constexpr td_shape td_shape_make(D... d)
{
    return td_shape{ (int)sizeof...(d), { (int64_t)d... } };
}
#define TD_SHAPE(...) td_shape_make(__VA_ARGS__)
#define TD_OPTS(type, ...) (&static_cast<const type &>(type{ __VA_ARGS__ }))   /* C++20 for .field names */
#else
#define TD_LITERAL(type) (type)
#define TD_SHAPE(...)                                                                                        \
    (td_shape){ (int)(sizeof((const int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), { __VA_ARGS__ } }
#define TD_OPTS(type, ...) (&(const type){ __VA_ARGS__ })
#endif
#define TD_SCALAR TD_LITERAL(td_shape){ 0, { 0 } }
#define TD_ZERO (-1)   /* in an option field whose zero means "default": a real zero */

/* ---- dtypes and devices -------------------------------------------------------------------------------------------- */
TD_API size_t      td_dtype_size(td_dtype dtype);          /* bytes of one element             */
TD_API const char *td_dtype_name(td_dtype dtype);          /* "f32"                            */

typedef enum { TD_DEFAULT, TD_CPU, TD_CUDA } td_device_kind;
typedef struct { td_device_kind kind; int index; } td_device;
TD_API td_device td_device_default(void);                  /* this rank's; TANDEM_DEVICE=cpu|cuda|cuda:N overrides  */
TD_API td_device td_device_of(const td_tensor *x);
TD_API td_tensor *td_to(td_tensor *x, td_device device);   /* x itself when it is there already                      */
/* td_memory of one device: the CPU's, or what this process holds on a GPU. live_tensors is the whole process's. */
TD_API td_memory_stats td_memory_of(td_device device);
TD_API void            td_memory_reset_peak_of(td_device device);   /* peak_bytes, of every category too               */
TD_API void            td_memory_trim_of(td_device device);   /* waits for a GPU, and gives its cached bytes back        */
/* td_memory_of as a short table of a line per category. td_memory_print writes it to stdout; td_memory_summary fills `into` (always
 * terminated) and returns the full length like snprintf. */
TD_API void            td_memory_print(td_device device);
TD_API size_t          td_memory_summary(td_device device, char *into, size_t size);
/* Waits until a device has done everything that was asked of it (torch.cuda.synchronize); what failed on it meanwhile is reported here. 0, or a
 * negative code. Only for timing: whatever reads a value waits by itself. The CPU is always done. */
TD_API int td_synchronize(td_device device);
/* What a GPU's time goes into. Between begin and end each kernel is timed by events on the device, which costs a few microseconds a launch;
 * end waits, fills in at most `room` kernels, those that took longest first, and returns how many there were; negative: an error. */
typedef struct { const char *kernel; int64_t calls; double ms; } td_kernel_time;
TD_API int td_kernel_times_begin(td_device device);
TD_API int td_kernel_times_end(td_device device, td_kernel_time *into, int room);
/* f32 matrix products and convolutions on GPUs through tensor cores, of numbers rounded to 10 bits: faster, and not f32. From the next
 * operation on; standard: TANDEM_TF32, else false. The CPU takes no notice. */
TD_API void td_allow_tf32(bool allow);
TD_API bool td_tf32_allowed(void);

/* ---- making tensors (on the default device, owned by the innermost scope) ---------------------------------------- */
TD_API td_tensor *td_empty(td_shape shape, td_dtype dtype);                 /* contents undefined                    */
TD_API td_tensor *td_zeros(td_shape shape, td_dtype dtype);
TD_API td_tensor *td_ones(td_shape shape, td_dtype dtype);
TD_API td_tensor *td_full(td_shape shape, td_dtype dtype, double value);
TD_API td_tensor *td_arange(int64_t n, td_dtype dtype);                     /* 0, 1, … n-1                            */
TD_API td_tensor *td_from(const void *data, td_shape shape, td_dtype dtype);/* copies; data is C-contiguous           */
/* Random numbers: Philox 4x32-10 (Salmon et al., SC'11), counter-based. Element i depends on (seed, stream, i) and
 * nothing else: not on shape, device, thread count or rank. f32; uniform in [0,1) from the top 24 bits; normal by
 * Box-Muller in f64, rounded. */
TD_API td_tensor *td_rand(td_shape shape, uint64_t seed, uint64_t stream);
TD_API td_tensor *td_randn(td_shape shape, uint64_t seed, uint64_t stream);
/* integers in [low, high), i64; exactly uniform (rejection within the element's own counters) */
TD_API td_tensor *td_randint(int64_t low, int64_t high, td_shape shape, uint64_t seed, uint64_t stream);
/* The job's seed: random operations and initialisers without a seed of their own use it. Default 0. */
TD_API void     td_seed(uint64_t seed);
TD_API uint64_t td_seed_get(void);

/* ---- looking ----------------------------------------------------------------------------------------------------------- */
TD_API td_shape td_shape_of(const td_tensor *x);
TD_API int64_t  td_dim(const td_tensor *x, int dim);        /* size of one dimension; -1 is the last                  */
TD_API int64_t  td_numel(const td_tensor *x);
TD_API td_dtype td_dtype_of(const td_tensor *x);
TD_API bool     td_is_contiguous(const td_tensor *x);
TD_API bool     td_is_poisoned(const td_tensor *x);
TD_API double   td_item(const td_tensor *x);                /* the only element; waits for the device; NaN on an error */
TD_API double   td_at(const td_tensor *x, td_shape index);  /* one element by index; NaN on an error                   */
TD_API void    *td_data(td_tensor *x);                      /* contiguous host memory; NULL and an error otherwise     */
TD_API int      td_copy_out(const td_tensor *x, void *into, size_t bytes);  /* from any device and strides; waits      */
TD_API int      td_copy_in(td_tensor *x, const void *from, size_t bytes);   /* x contiguous; in place, no gradient     */
/* "tensor (2,3) f32 [[1, 2, 3], [4, 5, 6]]", large ones abbreviated as NumPy does (3 at each end). td_print writes a
 * line to stdout; td_format fills `into` (always terminated) and returns the full length like snprintf. */
TD_API void     td_print(const td_tensor *x);
TD_API size_t   td_format(const td_tensor *x, char *into, size_t size);

/* ---- ownership ------------------------------------------------------------------------------------------------------------ */
TD_API td_tensor *td_keep(td_tensor *x);                    /* out of every scope, until td_release; returns x         */
TD_API void       td_release(td_tensor *x);                 /* ends a td_keep                                          */
TD_API td_tensor *td_escape(td_tensor *x);                  /* hand to the enclosing scope; returns x                  */

/* ---- in place, without gradients (states, buffers, initialisation) ---------------------------------------------------
 * Leaves too, parameters among them: they say what they do. What a graph has saved is protected: its backward then is an error.
 * Results that belong to a graph cannot be changed while gradients are on. */
TD_API int td_assign(td_tensor *into, td_tensor *value);    /* broadcast and converted; bumps the version             */
TD_API int td_fill(td_tensor *into, double value);

#ifdef __cplusplus
}
#endif
#endif
