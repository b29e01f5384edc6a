/* tensor/kernels.h: the table of kernels: one constant instance per device (and per instruction set on the CPU).
 *
 * Kernels are plain functions over pointers, sizes and dtypes: no tensors, no errors. Callers have checked shapes and dtypes.
 * Pointers are to the first element. "float" rows take f32 and f64, "arith" rows also i64 and i32. `add`: out += instead of out =.
 * An empty row (NULL) is a kernel that the device lacks: td__need says so. tensor/cpu/X.c and tensor/cuda/X.cu are twins.
 * Results do not depend on the number of threads: reductions work in blocks of fixed size in a fixed order.
 */
#ifndef TD_KERNELS_H
#define TD_KERNELS_H
#include <tandem/tensor.h>

/* Element-wise loop over up to 4 operands; outermost dimension first; strides in elements; operand 0 is the output. */
typedef struct { int ndim; int64_t dim[TD_MAX_DIMS]; int64_t stride[4][TD_MAX_DIMS]; } td_loop;
/* `keep`: the result's elements (operand 0 out, 1 in); `red`: the elements summed into each (operand 1 in). */
typedef struct { td_loop keep, red; } td_reduce_loop;
/* Of a convolution x (n,c,h,w) * w (o,c/groups,kh,kw) -> (n,o,oh,ow). Pools: kh = kw = window, o = c; dilation and groups are not read,
 * adaptive ones read sizes only. nhwc: in memory the channel is the last dimension of x, w, out and their gradients; only where the device
 * says channels_last. */
typedef struct { int64_t n, c, h, w, o, kh, kw, oh, ow; int stride, padding, dilation, groups; bool nhwc; } td_conv2d_shape;
/* q and out (n,h,t,d), k and v (n,h,s,d): strides in elements of n, h and rows; a row's elements are neighbours. mask: strides of n, h, t, s; 0
 * where it repeats; bool, or added in the dtype. causal: query t sees keys 0 … t. */
typedef struct { int64_t n, h, t, s, d, q[3], k[3], v[3], out[3], mask[4]; bool mask_bool, causal; double scale; } td_attention_shape;
/* What a random mask is drawn from; first: the first row's sample number where no table of them is given. at: the same four numbers in this
 * order in the kernel's device's memory, read when the kernel runs, instead (a captured step); NULL: these. position: of the first element within
 * each sample, a multiple of 64: a part of a larger tensor (only the CPU is asked for it, capture_blocks.c). */
typedef struct { uint64_t seed; int64_t step, call, first; const int64_t *at; int64_t position; } td_draw;
typedef enum { TD_COMBINE_SUM, TD_COMBINE_MIN, TD_COMBINE_MAX, TD_COMBINE_PRODUCT } td_combine;

/* A number that may change from step to step, or that only the device knows: by, times *at where at is not NULL (a f64 in the memory of the
 * kernel's device, read when the kernel runs). */
typedef struct { double by; const double *at; } td_number;
/* What a step of any optimizer takes. master: f32 copies of p's elements where p is f16 or bf16: they are stepped, and rounded into p; one that
 * does not round to p before the step counts as p (somebody wrote to p since). NULL: p is stepped itself. g is multiplied by gscale. State (moments, sums) is in the dtype of p, in f32 where that is f16 or bf16. stop: NULL, or a
 * f64 of the device: if it is not 0 when the kernel runs, nothing is written. */
typedef struct { void *p, *master; const void *g; td_number gscale, lr; const double *stop; } td_step;

typedef void td_k_unary(const td_loop *l, td_dtype t, void *out, const void *x, bool add);
typedef void td_k_binary(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add);

typedef struct td_kernels {
    const char *name;                                            /* "cpu avx2"                                             */

    /* movement: tensor/cpu/move.c (all dtypes; rounds to nearest even) */
    void (*copy)(const td_loop *l, td_dtype to, void *out, td_dtype from, const void *x, bool add);  /* add: one dtype, not u8, bool; or f32 to f16, bf16 */
    void (*fill)(const td_loop *l, td_dtype t, void *out, double value);   /* integers and bool: converted                   */
    void (*arange)(td_dtype t, int64_t n, void *out);

    /* element-wise: tensor/cpu/elementwise.c (arith) */
    td_k_binary *add, *sub, *mul, *div;
    td_k_binary *div_grad_b;                                     /* float: the gradient of x/b by b: a = grad_out*x, out = -(a/b)/b */
    void (*eq)(const td_loop *l, td_dtype t, void *out_bool, const void *a, const void *b);
    void (*scale)(const td_loop *l, td_dtype t, void *out, const void *x, double factor, double term, bool add);  /* x*factor + term */

    /* out (f32) = a (f32) + b (half: f16 or bf16), where a device computes in 16 bits: a residual stream and what a block adds to it */
    void (*add_half)(const td_loop *l, td_dtype half, float *out, const float *a, const void *b);

    /* activations: tensor/cpu/activation.c (float); …_grad: a = grad_out, b = x (relu, gelu, silu, ln) or y (sigmoid, tanh, exp, sqrt) */
    td_k_unary *relu, *gelu, *sigmoid, *tanh;
    td_k_binary *relu_grad, *gelu_grad, *sigmoid_grad, *tanh_grad;
    td_k_unary *silu, *exp, *ln, *sqrt;
    td_k_binary *silu_grad, *exp_grad, *ln_grad, *sqrt_grad;
    td_k_unary *gelu_tanh;
    td_k_binary *gelu_tanh_grad;                                 /* b = x                                                         */

    /* pointwise.c: abs, maximum, minimum, where: arith; pow, clamp and all gradients: float. NaN in, NaN out. */
    void (*abs)(const td_loop *l, td_dtype t, void *out, const void *x);
    void (*abs_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, bool add);
    void (*pow)(const td_loop *l, td_dtype t, void *out, const void *x, double exponent);
    void (*pow_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, double exponent, bool add);
    void (*clamp)(const td_loop *l, td_dtype t, void *out, const void *x, double low, double high);
    void (*clamp_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, double low, double high, bool add);
    void (*maximum)(const td_loop *l, td_dtype t, void *out, const void *a, const void *b);
    void (*minimum)(const td_loop *l, td_dtype t, void *out, const void *a, const void *b);
    /* out = g/2 where a == b, 0 where a < b, else g: the gradient of maximum(a, b) by a, and of minimum(b, a) by b */
    void (*extreme_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *a, const void *b, bool add);
    void (*where)(const td_loop *l, td_dtype t, void *out, const void *mask, const void *a, const void *b);   /* mask: bytes  */
    void (*where_grad)(const td_loop *l, td_dtype t, void *out, const void *mask, const void *g, bool when, bool add);

    /* reductions: tensor/cpu/reduce.c; sums accumulate in f64 per block for f32 and f64 */
    void (*sum)(const td_reduce_loop *r, td_dtype t, void *out, const void *x, double scale, bool add);          /* arith      */
    void (*amax)(const td_reduce_loop *r, td_dtype t, void *out, const void *x);                                 /* arith      */
    void (*amin)(const td_reduce_loop *r, td_dtype t, void *out, const void *x);
    void (*argmax)(const td_reduce_loop *r, td_dtype t, int64_t *out, const void *x);
    /* tensor/cpu/extreme_ties.c (float): x (outer,n,inner) contiguous, n > 0; g and y, its largest or smallest along n, (outer,inner): gx (=|+=) g in equal
     * shares where x equals y, times 0 elsewhere. A device may lack it: the gradients of td_amax and td_amin have other ways. */
    void (*extreme_ties_grad)(td_dtype t, int64_t outer, int64_t n, int64_t inner, void *gx, const void *g, const void *x, const void *y, bool add);
    /* tensor/cpu/variance.c (float): x (rows,n) contiguous, n > 0. out = scale * the sum of the squared deviations from each row's mean, which is written
     * too; the gradient: gx (=|+=) gout * scale * (x - mean). A device may lack them: td_var has other ways. */
    void (*var_rows)(td_dtype t, int64_t rows, int64_t n, void *out, void *mean, const void *x, double scale);
    void (*var_rows_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gout, const void *x, const void *mean, double scale, bool add);

    /* products: tensor/cpu/gemm.c (float): row-major C (m,n) = alpha*op(A)*op(B) + beta*C; ld in elements */
    void (*gemm)(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                 int64_t ldb, double beta, void *c, int64_t ldc);
    /* `count` such products: matrix j of a lies j*step_a elements behind the first (0: one for all), b's and c's likewise; c's do not overlap */
    void (*gemm_batched)(td_dtype t, bool ta, bool tb, int64_t count, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda,
                         int64_t step_a, const void *b, int64_t ldb, int64_t step_b, double beta, void *c, int64_t ldc, int64_t step_c);
    /* Products with something more, C (m,n) contiguous. A device may lack them (the CPU does), and each may answer false: nothing was done and
     * gemm with the rows it stands for does it. gemm_bias: C = op(A)*op(B) + bias, (n) or NULL; gelu: gelu_tanh of that, which pre (m,n) keeps
     * where it is not NULL. gemm_gelu_grad: C = op(A)*op(B), times gelu_tanh's derivative at pre (m,n). gemm_sums: as gemm with alpha 1, and
     * sums = op(A) summed over k (m), or op(B) (n) when of_b. */
    bool (*gemm_bias)(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                      const void *bias, bool gelu, void *pre, void *c);
    bool (*gemm_gelu_grad)(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                           const void *pre, void *c);
    bool (*gemm_sums)(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                      double beta, void *c, void *sums, bool of_b);

    /* rows: tensor/cpu/softmax.c (float): x (rows,n) contiguous */
    void (*softmax)(td_dtype t, int64_t rows, int64_t n, void *y, const void *x);
    void (*softmax_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gy, const void *y, bool add);
    void (*log_softmax)(td_dtype t, int64_t rows, int64_t n, void *y, const void *x);
    void (*log_softmax_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gy, const void *y, bool add);
    /* loss: the mean over the rows that count, a scalar; NaN when none does. lse (rows): log-sum-exp, saved for the gradient.
     * *kept: how many rows count (a scalar on the device); 0: the gradient is exactly zero. loss, gloss, lse and kept are in t, in f32 where t
     * is f16 or bf16. Targets are checked by `bad` (host): index of the first bad row, else -1. A device with a trap (td_device_ops.trapped)
     * does not wait: *bad is the number of the check (td__check_number) and becomes -1; a bad row does not count. */
    void (*cross_entropy)(td_dtype t, int64_t rows, int64_t n, const void *logits, const int64_t *target, double smoothing, bool has_ignore,
                          int64_t ignore, void *loss, void *lse, void *kept, int64_t *bad);
    void (*cross_entropy_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gloss, const void *logits, const int64_t *target,
                               const void *lse, const void *kept, double smoothing, bool has_ignore, int64_t ignore, bool add);
    void (*mse)(td_dtype t, int64_t n, const void *x, const void *y, void *loss);
    void (*mse_grad)(td_dtype t, int64_t n, void *gx, const void *gloss, const void *x, const void *y, double sign, bool add);
    /* nll.c: logp (rows,n); kept and bad as above, loss and gloss in t. bce: of logits x, targets y, weights of positives w (n, or NULL for 1); its gradient by
     * x, or by y when of_target. */
    void (*nll)(td_dtype t, int64_t rows, int64_t n, const void *logp, const int64_t *target, bool has_ignore, int64_t ignore, void *loss,
                void *kept, int64_t *bad);
    void (*nll_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gloss, const int64_t *target, const void *kept,
                     bool has_ignore, int64_t ignore, bool add);
    void (*bce)(td_dtype t, int64_t n, const void *x, const void *y, const void *w, void *loss);
    void (*bce_grad)(td_dtype t, int64_t n, void *g, const void *gloss, const void *x, const void *y, const void *w, bool of_target, bool add);

    /* attention: tensor/cpu/attention.c, rotary.c, swiglu.c (float). lse (n,h,t) and gradients, out's too, are contiguous; a gradient
     * that is NULL is not wanted, and none may lie in another; mask may be NULL */
    void (*attention)(td_dtype t, const td_attention_shape *a, void *out, void *lse, const void *q, const void *k, const void *v,
                      const void *mask);
    void (*attention_grad)(td_dtype t, const td_attention_shape *a, void *gq, void *gk, void *gv, const void *gout, const void *out,
                           const void *lse, const void *q, const void *k, const void *v, const void *mask, bool add_q, bool add_k, bool add_v);
    /* operands 0 out, 1 x, 2 table: a loop over rows, each of d neighbours. inverse: the gradient */
    void (*rotary)(const td_loop *rows, td_dtype t, int64_t d, void *out, const void *x, const void *table, bool inverse, bool add);
    void (*swiglu)(const td_loop *l, td_dtype t, void *out, const void *gate, const void *up);
    /* operand 0: strides of g, ggate and gup alike; 1 gate, 2 up. A NULL gradient is not wanted; the two may not lie in each other */
    void (*swiglu_grad)(const td_loop *l, td_dtype t, void *ggate, void *gup, const void *g, const void *gate, const void *up, bool add_gate,
                        bool add_up);

    /* norms of rows: tensor/cpu/layer_norm.c (float): x (rows,n); w, b (n) may be NULL; mean and rstd (rows) are saved. mean NULL: RMS norm,
     * which has none. Gradients that are NULL are not wanted; x is read for gx and gw only. x and gx are in t, y and gy in ty, which is t or, where
     * a device computes in 16 bits, f16 or bf16 beside f32 either way; all else is in t, in f32 beside 16 bits. */
    void (*layer_norm)(td_dtype t, td_dtype ty, int64_t rows, int64_t n, void *y, void *mean, void *rstd, const void *x, const void *w,
                       const void *b, double eps);
    void (*layer_norm_grad)(td_dtype t, td_dtype ty, int64_t rows, int64_t n, void *gx, void *gw, void *gb, const void *gy, const void *x,
                            const void *w, const void *mean, const void *rstd, bool add_x, bool add_w, bool add_b);
    /* group_norm.c: x (n,c,inner), groups of c/groups channels; w, b (c) may be NULL; mean and rstd (n,groups): these four and gw, gb in f32
     * beside 16 bits */
    void (*group_norm)(td_dtype t, int64_t n, int64_t c, int64_t inner, int64_t groups, void *y, void *mean, void *rstd, const void *x,
                       const void *w, const void *b, double eps);
    void (*group_norm_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, int64_t groups, void *gx, void *gw, void *gb, const void *gy,
                            const void *x, const void *w, const void *mean, const void *rstd, bool add_x, bool add_w, bool add_b);

    /* recurrent cells: tensor/cpu/rnn.c (float, contiguous): gates (n,4*hidden): input, forget, cell, output; gi, gh (n,3*hidden): reset, update, new;
     * states (n,hidden). act (n,4*hidden), what the gradients read, may be NULL. Gradients that are NULL are not wanted; gh and gc_out of
     * lstm_cell_grad that are NULL did not arrive. */
    void (*lstm_cell)(td_dtype t, int64_t n, int64_t hidden, void *h, void *c_out, void *act, const void *gates, const void *c);
    void (*lstm_cell_grad)(td_dtype t, int64_t n, int64_t hidden, void *ggates, void *gc, const void *gh, const void *gc_out, const void *act,
                           const void *c, const void *c_out, bool add_gates, bool add_c);
    void (*gru_cell)(td_dtype t, int64_t n, int64_t hidden, void *out, void *act, const void *gi, const void *gh, const void *h);
    void (*gru_cell_grad)(td_dtype t, int64_t n, int64_t hidden, void *ggi, void *ggh, void *gprev, const void *g, const void *act, const void *h,
                          bool add_gi, bool add_gh, bool add_h);

    /* by index: tensor/cpu/index.c (all dtypes; gradients float): x (outer,size,inner). The others trust that index_check found *bad -1: the first
     * position whose index is not in [0,size). On a device with a trap *bad is as in cross_entropy, and nobody trusts: a bad index reads place 0,
     * and its gradient is left out. */
    void (*index_check)(int64_t n, const int64_t *index, int64_t size, int64_t *bad);
    /* out (outer,count,inner): out[o,k,:] = x[o,index[k],:]; the gradient leaves the place `skip` out (-1: none) */
    void (*index_select)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *out, const void *x, const int64_t *index);
    void (*index_select_grad)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *gx, const void *g,
                              const int64_t *index, int64_t skip, bool add);
    /* out, index (outer,count,inner): out[o,k,i] = x[o,index[o,k,i],i] */
    void (*gather)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *out, const void *x, const int64_t *index);
    void (*gather_grad)(td_dtype t, int64_t outer, int64_t size, int64_t count, int64_t inner, void *gx, const void *g, const int64_t *index,
                        bool add);

    /* images: tensor/cpu/conv2d.c, pool2d.c, adaptive_pool2d.c, batch_norm.c (float, contiguous NCHW, or NHWC); bias (per channel of what
     * is written) may be NULL, gradients that are NULL are not wanted. What a max pool remembers lies as its output does. */
    void (*conv2d)(td_dtype t, const td_conv2d_shape *s, void *out, const void *x, const void *w, const void *bias, bool add);
    void (*conv2d_grad_x)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const void *w, const void *bias, bool add);
    void (*conv2d_grad_w)(td_dtype t, const td_conv2d_shape *s, void *gw, void *gbias, const void *gout, const void *x, bool add_w,
                          bool add_b);
    void (*max_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x);   /* where: h*W+w         */
    void (*max_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where, bool add);
    void (*avg_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, const void *x);
    void (*avg_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add);
    void (*adaptive_max_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x);  /* gradient: max_pool2d_grad */
    void (*adaptive_avg_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, const void *x);
    void (*adaptive_avg_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add);
    /* x (n,c,inner); mean and rstd (c) are saved; running ones updated when not NULL. Of an NHWC image: (n*h*w,c,1). All that is per
     * channel is f32 where t is f16 or bf16. */
    void (*batch_norm)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, void *mean, void *rstd, const void *x, const void *w,
                       const void *b, void *running_mean, void *running_var, bool train, double momentum, double eps);
    void (*batch_norm_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *gx, void *gw, void *gb, const void *gy, const void *x,
                            const void *w, const void *mean, const void *rstd, bool train, bool add_x, bool add_w, bool add_b);

    /* batch_norm_relu.c: y = relu(batch_norm(x) + z), z may be NULL. The gradient also gives gz = gy where y > 0; y may be NULL where z
     * was: where it is positive is found again from x, which then is there, as b is. */
    void (*batch_norm_relu)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, void *mean, void *rstd, const void *x, const void *z,
                            const void *w, const void *b, void *running_mean, void *running_var, bool train, double momentum, double eps);
    void (*batch_norm_relu_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *gx, void *gz, void *gw, void *gb, const void *gy,
                                 const void *y, const void *x, const void *w, const void *b, const void *mean, const void *rstd, bool train,
                                 bool add_x, bool add_z, bool add_w, bool add_b);

    /* the pieces of a batch_norm over several ranks; tables of c. pair: g NULL: first = mean, second = sum of (x-mean)²; else first = sum of
     * g, second = sum of g*(x-mean), mean given. affine: y = a*x + b*z + d; z may be NULL */
    void (*batch_norm_pair)(td_dtype t, int64_t n, int64_t c, int64_t inner, const void *x, const void *g, const double *mean, double *first,
                            double *second);
    void (*batch_norm_affine)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, const void *x, const void *z, const double *a,
                              const double *b, const double *d, bool add);

    /* batch_norm_sync.c: what lies between them, per channel, so that no host sees the tables (f64 on the device). save: count, c means, c
     * 1/deviations. sync_norm: `all` is of each rank count, c means, c sums of squares; running ones learn when not NULL; then y = factor*x +
     * term. sync_norm_own: sums = c sums, c products of pair: gw, gb (NULL: not wanted), and send = unit * sums (0 stays 0). sync_norm_grad:
     * `all` is of each rank what it sent; over unit the sum of all; then gx = factor*g + slope*x + term. w, b may be NULL. */
    void (*sync_norm)(td_dtype t, int ranks, int64_t c, const double *all, const void *w, const void *b, void *running_mean, void *running_var,
                      double momentum, double eps, double *save, double *factor, double *term);
    void (*sync_norm_own)(td_dtype t, int64_t c, const double *sums, const double *save, double unit, void *gw, void *gb, bool add_w, bool add_b,
                          double *send);
    void (*sync_norm_grad)(td_dtype t, int ranks, int64_t c, const double *all, const double *save, double unit, const void *w, double *factor,
                           double *slope, double *term);

    /* finite.c (f64, f32, bf16, f16): *count (+)= how many of the n elements are NaN or infinite; *first: the first of them, or -1 (NULL: not
     * wanted). Both in the device's memory. */
    void (*not_finite)(td_dtype t, int64_t n, const void *x, double *count, bool add, int64_t *first);

    /* random: tensor/cpu/random.c */
    void (*rand)(int64_t n, float *out, uint64_t seed, uint64_t stream, bool normal);
    void (*randint)(int64_t n, int64_t *out, int64_t low, int64_t high, uint64_t seed, uint64_t stream);
    /* dropout.c: rows of `per` elements; row i belongs to sample ids[i / k] (ids NULL: from.first + i/k). out = mask ? x/(1-p) : 0
     * (gradient: the same call) */
    void (*dropout)(td_dtype t, int64_t rows, int64_t per, int64_t k, void *out, const void *x, const int64_t *ids, td_draw from, double p,
                    bool add);

    /* optimizers: tensor/cpu/optimizer.c (f64, f32, bf16, f16): one pass over n elements; state that a rule does without is NULL.
     * bias: 1 - beta^step */
    void (*sgd)(td_dtype t, int64_t n, const td_step *s, void *v, double momentum, double dampening, double weight_decay, bool nesterov,
                bool first);                                                                        /* v NULL without momentum */
    void (*adamw)(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps, double weight_decay,
                  td_number bias1, td_number bias2);
    /* *out (+)= the sums of squares of `count` arrays of n[i] elements, one after the other: f64, fixed blocks. n and x are the host's. */
    void (*sumsq)(td_dtype t, int count, const int64_t *n, const void *const *x, double *out, bool add);
    /* optimizer_adaptive.c (likewise) */
    void (*adam)(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps, double weight_decay,
                 td_number bias1, td_number bias2);
    void (*rmsprop)(td_dtype t, int64_t n, const td_step *s, void *square, void *buffer, void *mean, double alpha, double eps,
                    double weight_decay, double momentum);
    void (*adagrad)(td_dtype t, int64_t n, const td_step *s, void *sum, double eps, double weight_decay, bool first, double initial);
    void (*lion)(td_dtype t, int64_t n, const td_step *s, void *m, double beta1, double beta2, double weight_decay);
    void (*ema)(td_dtype t, int64_t n, void *average, const void *x, double decay);                 /* float: += (1-decay)(x - average) */
    /* optimizer_layer.c (likewise): n elements of one parameter. lamb_moments: m and v of this step, squares = sum p*p, sum u*u (f64, fixed
     * blocks, on the device) of the update u; lamb: p -= lr * |p|/|u| * u. lars: v = momentum*v + rate*(g + decay*p); p -= v (v NULL without
     * momentum), rate = lr * trust*|p| / (|gscale*g| + decay*|p|), squares = sum p*p, sum g*g. A quotient with a norm of 0 is 1, and
     * without squares (NULL). */
    void (*lamb_moments)(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps,
                         double weight_decay, td_number bias1, td_number bias2, double *squares);
    void (*lamb)(td_dtype t, int64_t n, const td_step *s, const void *m, const void *v, const double *squares, double eps,
                 double weight_decay, td_number bias1, td_number bias2);
    void (*lars)(td_dtype t, int64_t n, const td_step *s, void *v, const double *squares, double trust, double momentum, double weight_decay);
    /* optimizer_numbers.c: single numbers, f64, all in the device's memory, so that a step needs no host. times: x (f64, f32, bf16, f16) *= by.
     * clip_factor: gradients are g * *factor, *squares the sum of g*g: *norm = their norm; where it is finite and above max, *factor
     * *= max / *norm. mark_not_finite: *mark = 1 where *squares is not finite. scale_update: the scaler's {scale, updates since it changed,
     * 1/scale} after an update that found *found. */
    void (*times)(td_dtype t, int64_t n, void *x, td_number by);
    void (*clip_factor)(const double *squares, double max, double *factor, double *norm);
    void (*mark_not_finite)(const double *squares, double *mark);
    void (*scale_update)(double *scale, const double *found, double growth, double backoff, int64_t interval);

    /* collectives: tensor/cpu/combine.c (every dtype; f16 and bf16 in f32, rounded once): out[j][i] = post * sum over r of pre[r] * in[r][i],
     * for all j of k buffers, r in order; the same pointers may be in and out. pre NULL: ones; an input whose factor is 0 is not read (never
     * 0*NaN). MIN, MAX and PRODUCT ignore pre and post; MIN and MAX pass NaN on. Of bool: MIN is and, MAX is or; others are not asked for. */
    void (*combine)(td_dtype t, td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post,
                    void *const *out, int outs);
} td_kernels;

static inline td_number td__number(double by)
{
    td_number x = { by, 0 };
    return x;
}
static inline double td__number_get(td_number x)                /* on the CPU                                                */
{
    return x.at ? x.by * *x.at : x.by;
}

const td_kernels *td__cpu_kernels(void);                        /* the chosen instruction set (TANDEM_ISA)                   */
const td_kernels *td__cpu_kernels_named(const char *name);      /* NULL: unknown, or this processor lacks it                */
void td__cpu_kernels_use(const td_kernels *kernels);            /* from now on (ranks agree on one; tests try each)          */
extern const td_kernels td__cpu_kernels_baseline, td__cpu_kernels_avx2, td__cpu_kernels_avx512;
#endif
