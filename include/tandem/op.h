/* tandem/op.h: one's own operations. An operation is one constant record; td_apply is the one door that checks, allocates,
 * runs and records. The library's own operations are made in the same way. See docs/design/ops.md.
 */
#ifndef TANDEM_OP_H
#define TANDEM_OP_H
#include <tandem/autograd.h>
#ifdef __cplusplus
extern "C" {
#endif

#define TD_OP_MAX_INPUTS 32
#define TD_OP_MAX_OUTPUTS 4
typedef struct td_call td_call;                         /* inputs, outputs, attributes, saved tensors, caller         */

/* Where the gradient of one input goes. into NULL: not wanted. add: the values there must be kept and added to. `into` has
 * the input's shape and dtype and is contiguous. grad fills every wanted slot (or td_call_pass does). */
typedef struct { td_tensor *into; bool add; } td_grad_slot;

enum {
    TD_OP_NO_ADD = 1u << 0,        /* grad can only overwrite: the door serves it with a temporary and adds            */
    TD_OP_KEEPS_DIVISOR = 1u << 1, /* the result of a stamped loss stays stamped (scale, add, …)                       */
    TD_OP_VIEW = 1u << 2,          /* output 0 may share the storage of input 0: infer calls td_call_view              */
    TD_OP_RANDOM = 1u << 3,        /* draws random numbers: takes an index of the random calls of this forward         */
    TD_OP_LOW = 1u << 4,           /* inside TD_AUTOCAST its f32, f16 and bf16 inputs become the region's dtype         */
    TD_OP_HIGH = 1u << 5,          /* inside TD_AUTOCAST its f16 and bf16 inputs become f32; with neither flag inputs of
                                      several of the three dtypes become the widest                                    */
    TD_OP_ANY_DTYPE = 1u << 6,     /* infer and run take f16 and bf16 as they are (they move elements); see below       */
    TD_OP_ANY_DTYPE_GRAD = 1u << 7,   /* so does grad                                                                  */
    TD_OP_MIXED = 1u << 8,         /* f32 inputs may stand beside 16-bit ones (batch norm's statistics), inside
                                      TD_AUTOCAST, too; f32 outputs take input 0's dtype                               */
};

/* f16 and bf16. A device that has no kernels for them (the CPU) computes in f32: infer and run see f32 copies of such inputs, f32
 * outputs are rounded once to the inputs' dtype, what is saved of inputs and outputs stays in 16 bits, and grad sees f32 copies of
 * grad_out and of saved inputs and outputs and f32 slots, which are rounded once as they are written or added. So an operation that
 * knows f32 alone takes f16 and bf16, too. Tensors made in run (and saved) stay what they are. Views are never copied. The float
 * inputs of one call must share one dtype, unless the record says TD_OP_MIXED. */
typedef struct td_op {
    const char *name;                                   /* "relu"; messages say td_<name>                            */
    int  (*infer)(td_call *call);                       /* check inputs; td_call_infer each output; or td_call_error  */
    int  (*run)(td_call *call);                         /* compute the outputs; not called when infer made a view;
                                                           NULL for pure views                                       */
    int  (*grad)(td_call *call, td_tensor *const *grad_out, td_grad_slot *grad_in);
                                                        /* grad_out[i] contiguous, NULL where nothing arrived;
                                                           NULL here: no gradient, outputs never need one            */
    size_t   attr_size;                                 /* bytes of attributes, copied into the call                 */
    int      n_outputs;                                 /* 0 means 1                                                 */
    uint32_t flags;
    uint32_t optional;                                  /* bit i: input i may be NULL (a bias); elsewhere the door
                                                           refuses NULL with one sentence                            */
    uint32_t reserved0;
    uint64_t reserved[2];
} td_op;

TD_API td_tensor *td_apply(const td_op *op, td_tensor *const *inputs, size_t n, const void *attr);   /* output 0      */
TD_API void td_apply_n(const td_op *op, td_tensor *const *inputs, size_t n, const void *attr, td_tensor **outputs);

/* ---- in infer, run and grad --------------------------------------------------------------------------------------------- */
TD_API size_t      td_call_inputs(const td_call *call);                 /* how many; an optional one may be NULL        */
TD_API const void *td_call_attr(const td_call *call);
TD_API td_shape    td_call_input_shape(const td_call *call, int i);     /* also in grad, saved or not                   */
TD_API bool        td_call_needs_grad(const td_call *call, int input);  /* is this input's gradient wanted?             */
/* One sentence, led by "td_<name>: "; returns code. */
TD_API int         td_call_error(td_call *call, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* In grad these two are the saved tensor, or NULL where that input or output was not saved. */
TD_API td_tensor  *td_call_input(const td_call *call, int i);
TD_API td_tensor  *td_call_output(const td_call *call, int i);

/* ---- in infer ------------------------------------------------------------------------------------------------------------ */
TD_API int         td_call_infer(td_call *call, int output, td_shape shape, td_dtype dtype);   /* contiguous, undefined  */
/* Output 0 is a view of input 0. Strides in elements; offset in elements from input 0's first element. */
TD_API int         td_call_view(td_call *call, td_shape shape, const int64_t *stride, int64_t offset);

/* ---- in run -------------------------------------------------------------------------------------------------------------- */
/* What grad reads: an input, an output, or a tensor made in run (then the call adopts the maker's reference, or where a scope owns
 * it takes one of its own). Saved inputs and outputs are checked at backward: changed in place since is an error. Where no
 * gradient will be asked for this keeps nothing. grad may read only attributes, shapes and what was saved. */
TD_API void        td_call_save(td_call *call, td_tensor *x);
/* A mean-reducing loss says its divisor (a float scalar on its device); output 0 takes a reference of its own. */
TD_API void        td_call_stamp(td_call *call, td_tensor *divisor);

/* ---- in grad ------------------------------------------------------------------------------------------------------------- */
TD_API td_tensor  *td_call_saved(const td_call *call, int i);           /* in the order of saving                       */
/* The gradient of `input` is the values of g: a grad_out, or made in grad; contiguous, the input's dtype and number of elements
 * (its shape may differ). Moved without a copy where possible, else copied or added into the slot. Not wanted: does nothing. */
TD_API int         td_call_pass(td_call *call, int input, td_tensor *g);

/* Registry of the library's operations, ended by NULL. */
TD_API const td_op *const *td_op_registry(void);

#ifdef __cplusplus
}
#endif
#endif
