/* tensor/cpu/cpu.h: the frame of the CPU kernels. Internal to tensor/cpu.
 *
 * Every file here is compiled three times from the same source (baseline x86-64 or whatever the compiler's default is, AVX2+FMA, AVX-512);
 * K(name) gives each copy its own name, table.c makes one td_kernels of each, choose.c picks one at run time.
 * Flags: -O3 -ffp-contract=off for all; never -ffast-math. Files are written so that the compiler vectorises
 * them (`#pragma omp simd`, restrict, blocks of 8); no intrinsics but in files that say so.
 *
 * A kernel is a plain function over pointers and sizes. How to add one: a row in td_kernels (kernels.h), a line in TD_CPU_ROWS,
 * the function K(row) in the family's file, the operation in autograd/, a row in the tests' tables.
 */
#ifndef TD_CPU_H
#define TD_CPU_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <base.h>
#include <kernels.h>

#ifndef TD_ISA                       /* set by meson: baseline, avx2 or avx512                                            */
#define TD_ISA baseline
#endif
#define TD_K2(name, isa) td__cpu_##name##_##isa
#define TD_K1(name, isa) TD_K2(name, isa)
#define K(name) TD_K1(name, TD_ISA)

#define TD_CPU_ROWS(X)                                                                                       \
    X(copy) X(fill) X(arange)                                                        /* move.c        */     \
    X(add) X(sub) X(mul) X(div) X(div_grad_b) X(eq) X(scale)                         /* elementwise.c */     \
    X(relu) X(gelu) X(sigmoid) X(tanh) X(relu_grad) X(gelu_grad) X(sigmoid_grad) X(tanh_grad) /* activation.c */ \
    X(silu) X(exp) X(ln) X(sqrt) X(silu_grad) X(exp_grad) X(ln_grad) X(sqrt_grad)                          \
    X(gelu_tanh) X(gelu_tanh_grad)                                                                           \
    X(abs) X(abs_grad) X(pow) X(pow_grad) X(clamp) X(clamp_grad)                     /* pointwise.c   */     \
    X(maximum) X(minimum) X(extreme_grad) X(where) X(where_grad)                                             \
    X(log_softmax) X(log_softmax_grad) X(nll) X(nll_grad) X(bce) X(bce_grad)         /* softmax.c, nll.c */  \
    X(sum) X(amax) X(amin) X(argmax)                                                 /* reduce.c      */     \
    X(extreme_ties_grad) X(var_rows) X(var_rows_grad)                                /* extreme_ties.c, variance.c */ \
    X(gemm) X(gemm_batched)                                                          /* gemm.c        */     \
    X(softmax) X(softmax_grad) X(cross_entropy) X(cross_entropy_grad) X(mse) X(mse_grad) /* softmax.c, loss.c */ \
    X(attention) X(attention_grad) X(rotary) X(swiglu) X(swiglu_grad)                /* attention.c, rotary.c, swiglu.c */ \
    X(layer_norm) X(layer_norm_grad) X(group_norm) X(group_norm_grad)                /* layer_norm.c, group_norm.c */ \
    X(lstm_cell) X(lstm_cell_grad) X(gru_cell) X(gru_cell_grad)                      /* rnn.c         */     \
    X(index_check) X(index_select) X(index_select_grad) X(gather) X(gather_grad)     /* index.c       */     \
    X(conv2d) X(conv2d_grad_x) X(conv2d_grad_w)                                      /* conv2d.c      */     \
    X(max_pool2d) X(max_pool2d_grad) X(avg_pool2d) X(avg_pool2d_grad)                /* pool2d.c      */     \
    X(adaptive_max_pool2d) X(adaptive_avg_pool2d) X(adaptive_avg_pool2d_grad)        /* adaptive_pool2d.c */ \
    X(batch_norm) X(batch_norm_grad) X(batch_norm_pair) X(batch_norm_affine) X(sync_norm) X(sync_norm_own) X(sync_norm_grad)         /* batch_norm.c  */     \
    X(batch_norm_relu) X(batch_norm_relu_grad)                                       /* batch_norm_relu.c */ \
    X(not_finite)                                                                    /* finite.c      */     \
    X(rand) X(randint)                                                               /* random.c      */     \
    X(dropout)                                                                       /* dropout.c     */     \
    X(sgd) X(adamw) X(sumsq)                                                         /* optimizer.c   */     \
    X(adam) X(rmsprop) X(adagrad) X(lion) X(ema)                                     /* optimizer_adaptive.c */ \
    X(lamb_moments) X(lamb) X(lars)                                                  /* optimizer_layer.c */ \
    X(times) X(clip_factor) X(mark_not_finite) X(scale_update)                       /* optimizer_numbers.c */ \
    X(combine)                                                                       /* combine.c     */

/* combine_narrow.c: one block (at most TD_BLOCK elements, from `offset` bytes on), where t is narrow; else false */
bool K(combine_narrow)(td_dtype t, td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post, size_t offset, void *out);

/* choose.c: TANDEM_CONV=direct. All ranks of a job must say the same, or their bits differ. */
bool td__conv_direct(void);

/* conv2d_winograd.c: which convolutions it takes (f32 and large enough: of the shape alone, never of the number of images); out from in, or the gradient of
 * x from that of out (to_x); the gradient of w */
bool K(conv2d_by_tiles)(td_dtype t, const td_conv2d_shape *s);
void K(conv2d_tiles)(const td_conv2d_shape *s, bool to_x, float *out, const float *in, const float *w, const float *bias, bool add);
void K(conv2d_tiles_weights)(const td_conv2d_shape *s, float *gw, const float *gout, const float *x, bool add);

/* conv2d_blocks.c: the same for any window, stride and dilation */
bool K(conv2d_by_blocks)(td_dtype t, const td_conv2d_shape *s);
void K(conv2d_blocks)(const td_conv2d_shape *s, bool to_x, float *out, const float *in, const float *w, const float *bias, bool add);
void K(conv2d_blocks_weights)(const td_conv2d_shape *s, float *gw, const float *gout, const float *x, bool add);

/* adaptive_pool2d.c: the gradient, not added, of a maximum over equal windows; false where they are not, or not for vectors: nothing is written then */
bool K(adaptive_max_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where);

/* what the CPU leaves to other rows */
#define TD_CPU_EMPTY_ROWS(X) X(add_half) X(gemm_bias) X(gemm_gelu_grad) X(gemm_sums)

#define TD_ROW_PROTOTYPE(row) extern __typeof__(*((td_kernels *)0)->row) K(row);
TD_CPU_ROWS(TD_ROW_PROTOTYPE)
#undef TD_ROW_PROTOTYPE

/* Below this many elements a parallel region costs more than it gives. Chunks given to threads are multiples of TD_BLOCK, so that what
 * a block computes does not depend on the number of threads. */
enum { TD_PARALLEL = 32768, TD_BLOCK = 1024 };

#endif
