/* tandem/autograd.h: gradients.
 *
 * Plain C control flow builds the graph; td_backward walks it once, frees it, and leaves gradients with the leaves
 * that asked for them (td_requires_grad, or parameters of modules).
 *
 * The mean. A mean-reducing loss is stamped with its divisor (samples, or tokens not ignored). Scaling keeps the stamp, and so
 * does adding a term without one (a regulariser); adding two different stamps is an error (use td_backward_weighted); no
 * stamp means weight 1. Several backwards before a step are micro-batches of one batch, with or without ddp: the gradient
 * is their weighted mean, sum(w_i g_i) / sum(w_i), over micro-batches and ranks. Never divide a loss by the number of
 * micro-batches or ranks yourself. Several losses of one batch are added and backwarded once.
 * Weight 0 (an empty batch) contributes exactly zero, whatever its values were.
 */
#ifndef TANDEM_AUTOGRAD_H
#define TANDEM_AUTOGRAD_H
#include <tandem/ops.h>
#ifdef __cplusplus
extern "C" {
#endif

/* loss: one element, a float of any width. Frees the graph: a second backward through it is an error. Refuses while an error is pending.
 * 0, or a negative code: what was refused beforehand has added nothing to any gradient; an error on the way (a gradient function, a rank
 * that is lost) forgets the gradients of all parameters that share an optimizer or td_ddp with one that was reached. */
TD_API int td_backward(td_tensor *loss);
TD_API int td_backward_weighted(td_tensor *loss, td_tensor *weight);   /* the divisor given: a scalar, float          */
typedef struct {
    td_tensor *weight;            /* default: the loss's stamp, else 1                                               */
    bool retain_graph;            /* default false                                                                  */
    uint64_t reserved[4];
} td_backward_opts;
TD_API int td_backward_with(td_tensor *loss, const td_backward_opts *opts);

/* The gradient so far: the weighted mean over all backwards since the last step (over ranks, with ddp: waits for the
 * reduction). NULL when there is none. Its parent's; valid until the next step. */
TD_API td_tensor *td_grad(td_tensor *leaf);
TD_API void td_zero_grad(td_tensors leaves);                           /* forget gradients (steps do it themselves)   */

/* Make leaves of x (f32, f64, f16, bf16; not a result of operations) or freeze them. A gradient has its leaf's dtype. Frozen parameters are in no bucket. */
TD_API void td_requires_grad(td_tensors leaves, bool on);
TD_API bool td_needs_grad(const td_tensor *x);                         /* a leaf that asks, or a result that depends on one */

/* fn sees the gradient of x in each backward: for a result of an operation when it is complete, before it flows on
 * (fn may change it in place); for a leaf the accumulated local gradient, before any reduction over ranks. */
TD_API void td_hook(td_tensor *x, void (*fn)(td_tensor *grad, void *user), void *user);

/* Gradients off / on for this thread; nests. TD_NO_GRAD(); holds until the end of the block. */
typedef struct { bool was; } td_grad_mode;
TD_API td_grad_mode td_no_grad_begin(void);
TD_API void         td_no_grad_end(td_grad_mode *mode);
#define TD_NO_GRAD()                                                                                         \
    __attribute__((cleanup(td_no_grad_end), unused)) td_grad_mode TD_PASTE(td_grad_mode_, __COUNTER__) = td_no_grad_begin()

/* Activation checkpointing: fn(inputs, n, user) with its activations computed twice instead of kept. The forward keeps the inputs and
 * forgets the rest; backward calls fn again, from the same random numbers and training flags, and goes on through what that gives.
 * Results, gradients and random numbers are those of a plain call of fn, bit for bit. fn may use parameters freely; results of
 * operations that it reads must be among inputs (at most 32); its one result is the only thing made inside that gradients may flow
 * through. Both calls must do the same; what fn reads besides (masks, *user's pointers) lives unchanged until backward, and so do the
 * parameters: a change between is an error. user_size > 0: that many bytes are copied now, and fn gets the copy; 0: fn gets `user`
 * itself. Without gradients fn is simply called. See docs/design/checkpoint.md. */
TD_API td_tensor *td_checkpoint(td_tensor *(*fn)(td_tensor *const *inputs, size_t n, void *user), void *user, size_t user_size,
                                td_tensor *const *inputs, size_t n);
/* Does td_backward compute a checkpointed function again just now? A forward that changes state of its own (running statistics,
 * counters) leaves it alone then. */
TD_API bool td_recomputing(void);

/* Mixed precision, as PyTorch's autocast: inside a region the operations that gain from 16 bits (matmul, linear, convolutions, attention,
 * LSTM and GRU cells) compute in `dtype`, those that need range or precision (softmax, losses, norms, exp, ln, pow, sum, mean, var, …) in
 * f32, the rest in the widest dtype of their inputs (docs/design/mixed.md has the list). dtype: TD_BF16, TD_F16 (then with a td_scaler,
 * optim.h), or TD_F32, which switches it off. Of this thread; nests. Parameters stay f32 and get f32 gradients. The 16-bit copy of a
 * parameter is made once per outermost region: put one around each forward and loss. f64 tensors are left alone. td_backward may stand
 * inside or outside: it computes in the dtypes of the forward. TD_AUTOCAST(TD_BF16); holds until the end of the block. */
typedef struct { td_dtype was; uint64_t reserved; } td_autocast;
TD_API td_autocast td_autocast_begin(td_dtype dtype);
TD_API void        td_autocast_end(td_autocast *region);
#define TD_AUTOCAST(dtype)                                                                                   \
    __attribute__((cleanup(td_autocast_end), unused)) td_autocast TD_PASTE(td_autocast_, __COUNTER__) = td_autocast_begin(dtype)

/* Compare the gradients of fn with central finite differences, in f64. inputs: f64 leaves (made so here); fn returns any
 * shape (it is weighted by fixed random numbers). 0, or the number of elements that differ by more than
 * atol + rtol*|numeric|, the worst described through td_log. Negative: an error. Defaults (0): eps 1e-6, atol 1e-7, rtol 1e-5. */
typedef struct { double eps, atol, rtol; uint64_t reserved[4]; } td_gradcheck_opts;   /* defaults 1e-6, 1e-7, 1e-5 */
TD_API int td_gradcheck(td_tensor *(*fn)(td_tensor *const *inputs, size_t n, void *user), void *user, td_tensor *const *inputs,
                        size_t n, const td_gradcheck_opts *opts);

#ifdef __cplusplus
}
#endif
#endif
