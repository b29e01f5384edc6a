/* tandem/ops.h: operations: shapes in, shapes out. Each result belongs to the innermost scope and, where an input
 * needs gradients, joins the graph. What is said to be "float" works in f32, f64, f16 and bf16 (16 bits accumulate in f32 and are
 * rounded once: docs/design/mixed.md), other arithmetic in i64 and i32, too. Operands must share a dtype (td_cast converts, TD_AUTOCAST
 * chooses) and a device. Broadcasting is NumPy's. Every operation takes 0 rows.
 */
#ifndef TANDEM_OPS_H
#define TANDEM_OPS_H
#include <tandem/tensor.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- arithmetic, with broadcasting ------------------------------------------------------------------------------------ */
TD_API td_tensor *td_add(td_tensor *a, td_tensor *b);
TD_API td_tensor *td_sub(td_tensor *a, td_tensor *b);
TD_API td_tensor *td_mul(td_tensor *a, td_tensor *b);
TD_API td_tensor *td_div(td_tensor *a, td_tensor *b);         /* integers: towards zero; x/0 of integers is 0          */
TD_API td_tensor *td_neg(td_tensor *x);
TD_API td_tensor *td_scale(td_tensor *x, double factor);      /* x * factor                                           */
TD_API td_tensor *td_shift(td_tensor *x, double term);        /* x + term                                             */
TD_API td_tensor *td_eq(td_tensor *a, td_tensor *b);          /* bool; no gradient                                    */
TD_API td_tensor *td_cast(td_tensor *x, td_dtype dtype);      /* rounds to nearest even; gradient is cast back        */

TD_API td_tensor *td_abs(td_tensor *x);                       /* gradient at 0: 0                                     */
/* x to the power of a number, taken in x's dtype; float. As C's pow (negative x with a broken exponent: NaN), but exponents 0.5 and -0.5
 * are the square root and its inverse (PyTorch). Exponent 0: 1 and gradient 0 everywhere. */
TD_API td_tensor *td_pow(td_tensor *x, double exponent);
/* Float, same shape: low where x < low, high where x > high; NaN stays. -INFINITY, INFINITY: no such bound. low > high or a NaN
 * bound: TD_ERR_ARGUMENT. The gradient passes where low <= x <= high. */
TD_API td_tensor *td_clamp(td_tensor *x, double low, double high);
/* Element by element, with broadcasting; NaN where either is. The gradient goes to the operand chosen, half to each of equal ones (PyTorch). */
TD_API td_tensor *td_maximum(td_tensor *a, td_tensor *b);
TD_API td_tensor *td_minimum(td_tensor *a, td_tensor *b);
/* a where the condition (bool or u8, not 0) holds, else b; the three broadcast. What is not chosen gets gradient 0, also beside NaN. */
TD_API td_tensor *td_where(td_tensor *condition, td_tensor *a, td_tensor *b);

/* ---- reductions: axes n_axes 0 means all; negative axes count from the end; keep leaves size-1 dimensions -------------- */
TD_API td_tensor *td_sum(td_tensor *x, const int *axes, int n_axes, bool keep);
TD_API td_tensor *td_mean(td_tensor *x, const int *axes, int n_axes, bool keep);  /* float; no divisor stamp           */
TD_API td_tensor *td_amax(td_tensor *x, const int *axes, int n_axes, bool keep);  /* gradient shared evenly among ties  */
TD_API td_tensor *td_amin(td_tensor *x, const int *axes, int n_axes, bool keep);
/* Float: sum of (x - mean)^2 / (elements - correction); correction 0: biased, 1: unbiased (PyTorch's default), negative: TD_ERR_ARGUMENT.
 * No more elements than the correction: NaN or infinity. */
TD_API td_tensor *td_var(td_tensor *x, const int *axes, int n_axes, bool keep, int correction);
TD_API td_tensor *td_argmax(td_tensor *x, int axis);          /* i64, the first of equals; no gradient                */

/* ---- views and copies ------------------------------------------------------------------------------------------------- */
TD_API td_tensor *td_reshape(td_tensor *x, td_shape shape);   /* one dimension may be -1; a view where strides allow   */
TD_API td_tensor *td_flatten(td_tensor *x, int from);         /* dimensions from..last become one                     */
TD_API td_tensor *td_permute(td_tensor *x, const int *order, int n);
TD_API td_tensor *td_transpose(td_tensor *x, int dim0, int dim1);
TD_API td_tensor *td_expand(td_tensor *x, td_shape shape);    /* size-1 dimensions repeat, as a view                  */
TD_API td_tensor *td_narrow(td_tensor *x, int dim, int64_t start, int64_t length);  /* a view                          */
TD_API td_tensor *td_contiguous(td_tensor *x);                /* x itself when it is                                  */
/* How the elements of (N,C,H,W) lie in memory: row by row, or pixel by pixel, a pixel's channels together (strides of N,H,W,C). */
typedef enum { TD_CONTIGUOUS, TD_CHANNELS_LAST } td_memory_format;
/* x in that order, with the same shape and values: x itself when it lies so, else a copy. 4 dimensions for TD_CHANNELS_LAST. It is enough
 * to say it of a network's input: on a GPU convolutions, pools, batch norm, activations and arithmetic hand it on and find their weights a
 * fitting copy, and 16-bit images are several times faster so. On the CPU they go back to rows. Parameters stay as they are. */
TD_API td_tensor *td_to_memory_format(td_tensor *x, td_memory_format format);
TD_API td_tensor *td_detach(td_tensor *x);                    /* same values, out of the graph                        */

/* ---- pieces and indices (any dtype unless said) ------------------------------------------------------------------------ */
/* n >= 1 tensors of one dtype, equal but along the axis (negative: from the end) -> one tensor, a copy. A list may be of any length. */
TD_API td_tensor *td_concat(td_tensor *const *list, size_t n, int axis);
/* n >= 1 tensors of one shape -> a new dimension of size n at the axis, 0 … ndim (negative: from the end of the result). */
TD_API td_tensor *td_stack(td_tensor *const *list, size_t n, int axis);
/* n >= 1 views of x, one after the other along the axis, of these sizes, which add up to x's there (else TD_ERR_ARGUMENT). They are
 * written to outputs[0 … n-1]; after an error those are poisoned. */
TD_API void       td_split(td_tensor *x, const int64_t *sizes, size_t n, int axis, td_tensor **outputs);
/* index (K), i64 or i32, in [0, size of the axis): x's slices of these numbers -> x's shape with K at the axis. */
TD_API td_tensor *td_index_select(td_tensor *x, int axis, td_tensor *index);
/* index i64 or i32, x's shape but for the size of the axis: result[i,j,…] = x[i,j,…] with the axis' index replaced by index[i,j,…]
 * (PyTorch's gather, NumPy's take_along_axis). An index outside [0, size): TD_ERR_ARGUMENT, with position and value. The gradients of
 * the two and of td_embedding add in the order of the index, without atomics: the same bits with any number of threads. f32, f64. */
TD_API td_tensor *td_gather(td_tensor *x, int axis, td_tensor *index);
/* before[d] and after[d] (0 or more) elements of this value are put around each of the n dimensions of x; n is x's number of them. */
TD_API td_tensor *td_pad(td_tensor *x, const int64_t *before, const int64_t *after, int n, double value);
typedef struct {
    bool    has_padding_idx;      /* default false: every row gets a gradient                                        */
    int64_t padding_idx;          /* default 0; with has_padding_idx: this row of the weight gets no gradient; in [0,V)   */
    uint64_t reserved[4];
} td_embedding_opts;
/* weight float (V,D), ids i64 or i32 of any shape, in [0,V) -> ids' shape with D added: rows of the weight. An id outside: TD_ERR_ARGUMENT,
 * with position and value. The gradient is dense. opts NULL: defaults. */
TD_API td_tensor *td_embedding(td_tensor *weight, td_tensor *ids, const td_embedding_opts *opts);

/* ---- products ----------------------------------------------------------------------------------------------------------- */
TD_API td_tensor *td_matmul(td_tensor *a, td_tensor *b);      /* float (…,M,K) (…,K,N) -> (…,M,N); batch dimensions broadcast;
                                                                 1-D operands as NumPy's matmul                       */
TD_API td_tensor *td_linear(td_tensor *x, td_tensor *w, td_tensor *b);  /* (…,I) (O,I) (O)|NULL -> (…,O)               */
TD_API td_tensor *td_affine(td_tensor *x, td_tensor *w, td_tensor *b);  /* (…,I) (I,O) (O)|NULL -> (…,O): x w + b, GPT-2's Conv1D */
typedef struct {
    bool exact;                   /* default false: td_gelu_tanh; true: td_gelu, which no device fuses                 */
    bool in_out;                  /* default false: weights are (O,I), as td_linear's; true: (I,O), as td_affine's     */
    uint64_t reserved[4];
} td_linear_gelu_opts;
/* gelu of td_linear (td_affine), by default the tanh form; and that followed by a second layer: x (…,I)  w1 (H,I)  b1 (H)|NULL
 * w2 (O,H)  b2 (O)|NULL -> (…,O). Where a device can, GELU and its gradient are computed within the products, before they are rounded;
 * elsewhere (the CPU) the result has the bits of td_linear and td_gelu_tanh one after the other. */
TD_API td_tensor *td_linear_gelu(td_tensor *x, td_tensor *w, td_tensor *b, const td_linear_gelu_opts *opts);
TD_API td_tensor *td_mlp(td_tensor *x, td_tensor *w1, td_tensor *b1, td_tensor *w2, td_tensor *b2, const td_linear_gelu_opts *opts);

/* ---- activations (float) ---------------------------------------------------------------------------------------------- */
TD_API td_tensor *td_relu(td_tensor *x);
TD_API td_tensor *td_gelu(td_tensor *x);                      /* exact: x * (1 + erf(x/sqrt 2)) / 2                     */
/* GPT-2's and BERT's "gelu_new": x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2; PyTorch's approximate="tanh" */
TD_API td_tensor *td_gelu_tanh(td_tensor *x);
TD_API td_tensor *td_sigmoid(td_tensor *x);
TD_API td_tensor *td_tanh(td_tensor *x);
TD_API td_tensor *td_silu(td_tensor *x);                      /* x / (1 + exp(-x)); Elfwing et al. 2017, also "swish"   */
TD_API td_tensor *td_exp(td_tensor *x);
TD_API td_tensor *td_ln(td_tensor *x);                        /* natural logarithm (td_log prints); 0: -infinity, below: NaN */
TD_API td_tensor *td_sqrt(td_tensor *x);                      /* below 0: NaN; gradient at 0: infinity                 */
TD_API td_tensor *td_softmax(td_tensor *x, int axis);         /* subtracts the maximum first                          */
TD_API td_tensor *td_log_softmax(td_tensor *x, int axis);     /* log(softmax(x)), without its underflow                */

/* ---- attention (float) ------------------------------------------------------------------------------------------------------ */
typedef struct {
    bool   causal;                /* default false; true: query t sees keys 0 … t, aligned at the top left as PyTorch's
                                     is_causal, also where T and S differ                                              */
    double scale;                 /* default 1/sqrt(D); of the scores                                                  */
    td_tensor *mask;              /* default none; broadcasts to (N,H,T,S): bool (true: attend) or q's dtype (added to the scores;
                                     -inf: do not attend). It has no gradient: one that asks for it is an error          */
    uint64_t reserved[4];
} td_attention_opts;
/* q (N,H,T,D)  k, v (N,H,S,D), one float dtype -> (N,H,T,D): softmax(scale * q k^T + mask) v without storing a matrix of T times S,
 * forward or backward (FlashAttention-2, Dao 2023; backward computes the scores again). mask and causal may be combined. A query that may
 * attend to nothing gives zeros and zero gradients. q, k and v may have any strides; only rows whose elements are not neighbours are copied,
 * so heads that are td_transpose of (N,T,H,D), or shared by td_expand, are read in place. The result lies as q does: where q's heads are
 * such slices, td_transpose(y, 1, 2) is contiguous and its td_reshape to (N,T,H*D) costs nothing. Shapes that do not fit: TD_ERR_SHAPE. */
TD_API td_tensor *td_attention(td_tensor *q, td_tensor *k, td_tensor *v, const td_attention_opts *opts);
/* Rotary position embedding (Su et al. 2021) in GPT-NeoX's half-split convention, that of Llama in `transformers`: element i < D/2 of a row is
 * paired with i + D/2, and at position p the pair turns by the angle p * base^(-2i/D): y[i] = x[i] cos - x[i+D/2] sin,
 * y[i+D/2] = x[i+D/2] cos + x[i] sin. x float (…,T,D), D even; table (T,D), same dtype: row t holds the angles of x's rows t. A first
 * position other than 0 (a key/value cache) is td_narrow(table, 0, first, T). No gradient for the table. */
TD_API td_tensor *td_rotary(td_tensor *x, td_tensor *table);
/* (positions, d): d/2 cosines and d/2 sines of positions 0, 1, …, computed in f64. base 0: 10000. Make it once, keep it. */
TD_API td_tensor *td_rotary_table(int64_t positions, int64_t d, double base, td_dtype dtype);
/* silu(gate) * up with silu(x) = x * sigmoid(x), same shape and float dtype (SwiGLU without its three products; Shazeer 2020). */
TD_API td_tensor *td_swiglu(td_tensor *gate, td_tensor *up);

/* ---- recurrent cells (float): what follows the products of one time step, fused; the modules are in nn.h --------------------- */
/* gates (N,4H): the sums of the input, forget, cell and output gates i f g o, side by side (PyTorch's order), c (N,H) -> two results (N,H):
 * c' = sigmoid(f) * c + sigmoid(i) * tanh(g), h' = sigmoid(o) * tanh(c'). Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000.
 * h_out or c_out may be NULL: not wanted. After an error both are poisoned. Shapes that do not fit: TD_ERR_SHAPE. */
TD_API void       td_lstm_cell(td_tensor *gates, td_tensor *c, td_tensor **h_out, td_tensor **c_out);
/* gi, gh (N,3H): the sums of the reset, update and new gates r z n from the input and from the state, biases included; h (N,H) -> h' (N,H):
 * (1 - z) * tanh(gi_n + r * gh_n) + z * h with r = sigmoid(gi_r + gh_r), z = sigmoid(gi_z + gh_z) (Cho et al. 2014, the reset gate after
 * the product, as PyTorch and cuDNN). Shapes that do not fit: TD_ERR_SHAPE. */
TD_API td_tensor *td_gru_cell(td_tensor *gi, td_tensor *gh, td_tensor *h);

/* ---- losses: mean-reducing ones stamp their result with its divisor (autograd.h) --------------------------------------- */
typedef struct {
    double  label_smoothing;     /* default 0; in [0,1): target mixed with the uniform distribution                 */
    bool    has_ignore_index;     /* default false: every target must be in [0,C)                                    */
    int64_t ignore_index;         /* default 0; with has_ignore_index: such rows count neither in sum nor in divisor  */
    uint64_t reserved[4];
} td_cross_entropy_opts;
/* logits float (N,C), target i64 (N) -> (): mean over the rows not ignored; NaN when there are none (as PyTorch).
 * Divisor: the number of rows not ignored. */
TD_API td_tensor *td_cross_entropy(td_tensor *logits, td_tensor *target, const td_cross_entropy_opts *opts);
TD_API td_tensor *td_mse(td_tensor *x, td_tensor *target);    /* same shape -> (): mean of squares. Divisor: elements   */

typedef struct {
    bool    has_ignore_index;     /* default false: every target must be in [0,C)                                    */
    int64_t ignore_index;         /* default 0; with has_ignore_index: such rows count neither in sum nor in divisor  */
    uint64_t reserved[4];
} td_nll_opts;
/* log_probabilities float (N,C) (td_log_softmax), target i64 (N) -> (): the mean of -log_probabilities[i][target[i]] over the rows not
 * ignored; NaN when there are none. A target outside [0,C): TD_ERR_ARGUMENT. Divisor: the number of rows not ignored. */
TD_API td_tensor *td_nll(td_tensor *log_probabilities, td_tensor *target, const td_nll_opts *opts);
typedef struct {
    td_tensor *pos_weight;        /* default NULL: 1; broadcasts to x: weight of the positive part. No gradient        */
    uint64_t reserved[4];
} td_bce_opts;
/* x float logits, target of the same shape and dtype, usually in [0,1] -> (): the mean of -(w target log s(x) + (1 - target) log(1 - s(x))),
 * s the sigmoid, computed from the logits without overflow (PyTorch's binary_cross_entropy_with_logits). Gradients of both; NaN without
 * elements. Divisor: elements. */
TD_API td_tensor *td_bce_with_logits(td_tensor *x, td_tensor *target, const td_bce_opts *opts);

/* ---- images: NCHW, float ------------------------------------------------------------------------------------------------ */
typedef struct {
    int stride;                   /* default 1, both directions                                                      */
    int padding;                  /* default 0, zeros on every side                                                  */
    int dilation;                 /* default 1: distance of the kernel's elements, both directions                   */
    int groups;                   /* default 1: channels in so many neighbouring groups, each convolved by itself     */
    uint64_t reserved[4];
} td_conv2d_opts;
/* x (N,C,H,W)  w (O,C/groups,KH,KW)  b (O)|NULL -> (N,O,OH,OW), OH = (H + 2*padding - dilation*(KH-1) - 1)/stride + 1
 * (cross-correlation). groups divides C and O (else TD_ERR_SHAPE); groups = C = O is depthwise. */
TD_API td_tensor *td_conv2d(td_tensor *x, td_tensor *w, td_tensor *b, const td_conv2d_opts *opts);
typedef struct {
    int stride;                   /* default 1, both directions                                                      */
    int padding;                  /* default 0: rows and columns cut off on every side of the result                 */
    int output_padding;           /* default 0; rows and columns more at bottom and right; less than stride or dilation */
    int dilation;                 /* default 1                                                                       */
    int groups;                   /* default 1                                                                       */
    uint64_t reserved[4];
} td_conv_transpose2d_opts;
/* The gradient of td_conv2d with respect to its x, as an operation: x (N,C,H,W)  w (C,O/groups,KH,KW)  b (O)|NULL -> (N,O,OH,OW),
 * OH = (H-1)*stride - 2*padding + dilation*(KH-1) + output_padding + 1, at least 1 (else TD_ERR_SHAPE). */
TD_API td_tensor *td_conv_transpose2d(td_tensor *x, td_tensor *w, td_tensor *b, const td_conv_transpose2d_opts *opts);
typedef struct {
    int stride;                   /* default: the window's size                                                      */
    int padding;                  /* default 0; at most half the window                                              */
    uint64_t reserved[4];
} td_pool2d_opts;
TD_API td_tensor *td_max_pool2d(td_tensor *x, int window, const td_pool2d_opts *opts);  /* gradient to the first maximum */
TD_API td_tensor *td_avg_pool2d(td_tensor *x, int window, const td_pool2d_opts *opts);  /* padding counts, as PyTorch's default */
/* x (N,C,H,W), H and W at least 1 -> (N,C,out_h,out_w), out_h and out_w at least 1: pixel i is made of the rows floor(i*H/out_h) up to
 * ceil((i+1)*H/out_h) - 1, columns alike (PyTorch): windows overlap where the sizes do not divide. */
TD_API td_tensor *td_adaptive_avg_pool2d(td_tensor *x, int64_t out_h, int64_t out_w);
TD_API td_tensor *td_adaptive_max_pool2d(td_tensor *x, int64_t out_h, int64_t out_w);   /* gradient to the first maximum */
typedef struct {
    bool  train;                  /* default false; true: batch statistics, and the running ones are updated          */
    double momentum;              /* default 0.1: running = (1-momentum)*running + momentum*batch; TD_ZERO for 0       */
    double eps;                   /* default 1e-5                                                                     */
    uint64_t reserved[4];
} td_batch_norm_opts;
/* x (N,C,…)  w, b (C)|NULL  running mean and variance (C), same dtype, may be NULL when train. Normalises with the
 * biased variance; the running one is unbiased (PyTorch). Ioffe and Szegedy 2015. */
TD_API td_tensor *td_batch_norm(td_tensor *x, td_tensor *w, td_tensor *b, td_tensor *running_mean, td_tensor *running_var,
                                const td_batch_norm_opts *opts);
/* relu(td_batch_norm(x, …) + z), z of x's shape or NULL, in one operation: 8 instead of 13 passes over an image and its gradient. */
TD_API td_tensor *td_batch_norm_relu(td_tensor *x, td_tensor *z, td_tensor *w, td_tensor *b, td_tensor *running_mean, td_tensor *running_var,
                                     const td_batch_norm_opts *opts);

/* ---- normalisation of each sample by itself (float): y = (x - mean) / sqrt(variance + eps) * w + b ------------------------------
 * The variance is the biased one; w and b of x's dtype may be NULL (1 and 0). eps 0 or more, taken as it is: PyTorch's defaults are 1e-5
 * and, for RMS norm, the machine epsilon of the dtype. Shapes that do not fit: TD_ERR_SHAPE. */
/* Over the last n_dims >= 1 dimensions of x together; w, b: the shape of those. Ba et al. 2016. */
TD_API td_tensor *td_layer_norm(td_tensor *x, td_tensor *w, td_tensor *b, int n_dims, double eps);
/* The same, rounded once: td_cast(td_layer_norm(…), dtype), without the copy in between where the device can. For results that only products
 * read inside TD_AUTOCAST. */
TD_API td_tensor *td_layer_norm_to(td_tensor *x, td_tensor *w, td_tensor *b, int n_dims, double eps, td_dtype dtype);
TD_API td_tensor *td_rms_norm_to(td_tensor *x, td_tensor *w, double eps, td_dtype dtype);
/* x (…,D)  w (D)|NULL: x / sqrt(mean of x^2 + eps) * w, over the last dimension. Zhang and Sennrich 2019. */
TD_API td_tensor *td_rms_norm(td_tensor *x, td_tensor *w, double eps);
/* x (N,C,…)  w, b (C)|NULL: over C/groups neighbouring channels and everything behind them; groups divides C. Wu and He 2018. */
TD_API td_tensor *td_group_norm(td_tensor *x, int64_t groups, td_tensor *w, td_tensor *b, double eps);

/* ---- random operations ------------------------------------------------------------------------------------------------- */
/* Zeroes with probability p in [0,1) and scales the rest by 1/(1-p). Element (i, …) of a first dimension rows*k belongs
 * to sample number i/k; its random bits are Philox of (seed, step, sample, index of the call in this forward, position
 * within the sample): the mask does not depend on the number of ranks, the batch size or threads. train false: x itself. */
TD_API td_tensor *td_dropout(td_tensor *x, double p, bool train);
/* The thread's current sample numbers for random operations: i64 (rows). td_loader_next sets them from the batch; say
 * them for one's own data; without, row i of R rows is sample rank*R + i. NULL: back to that default. Kept until replaced.
 * A new set of samples starts a new forward: the index of random calls goes back to 0. */
TD_API void td_samples(td_tensor *ids);
/* The step counter of random operations: advanced by td_optim_step; also readable and settable. Per process. */
TD_API int64_t td_step_get(void);
TD_API void    td_step_set(int64_t step);

#ifdef __cplusplus
}
#endif
#endif
