/* plugins/cuda/cuda_impl.h: the host side of CUDA from inside: C against the C APIs of the runtime and cuBLASLt. Kernels are in
 * tensor/cuda, which sees only the td__cuda_ functions of its cuda.h.
 *
 * A process computes on one GPU, the first that it uses; one rank per GPU is how more are used. So there is one compute stream, one
 * allocator, one handle of cuBLASLt, and kernels need not be told where they run.
 */
#ifndef TD_CUDA_IMPL_H
#define TD_CUDA_IMPL_H
#include <base.h>
#include <cuda_runtime_api.h>
#include <kernels.h>
#include <plugin_abi.h>
#include <tensor_impl.h>
#include <cuda/trap_record.h>

extern const td_host *cuda_host;
extern const td_device_ops cuda_ops;
extern const td_kernels td__cuda_kernels;

/* ---- device.c -------------------------------------------------------------------------------------------------------------------- */
#ifndef CUDA_OLDEST                                    /* the oldest compute capability that the kernels are built for (-Dgpu_arch), times 10  */
#define CUDA_OLDEST 90
#endif
/* Why no GPU can be used, or NULL. Asks the driver; the sentence stays valid. */
const char *cuda_refusal(void);
int  cuda_count(void);
/* Before every use: GPU number `index` is the process's from now on and the thread's current one. 0, or a code after fail. */
int  cuda_use(int index);
int  cuda_index(void);                                 /* which it is; -1: none yet                                            */
/* What failed, what CUDA says, and what was launched last if the error may come from there. Returns its code. */
int  cuda_failed(cudaError_t e, const char *what);
extern int cuda_processors;
size_t cublas_version(void);                          /* blas.c                                                          */

void cuda_version_text(int version, char into[16]);    /* 13000: "13.0"                                                    */
bool cuda_new_enough(const struct cudaDeviceProp *p);

/* ---- describe.c ------------------------------------------------------------------------------------------------------------------ */
/* What `tandem doctor` says of the plug-in (plugin_abi.h). A library that it uses adds a row to the table there: its name, and a function that
 * writes its version and returns true, or why it cannot be used and returns false. */
typedef struct { const char *name; bool (*describe)(char *into, size_t size); } cuda_component;
const char *cuda_describe(char *into, size_t size);

/* ---- stream.c -------------------------------------------------------------------------------------------------------------------- */
extern cudaStream_t cuda_compute;                      /* of the process's GPU; opened by cuda_use                              */
int   cuda_stream_open(void);
extern _Atomic(const char *) cuda_last_row;            /* the kernel that was launched last                                       */
int   cuda_synchronize(int index);
void *cuda_stream_new(int index, bool high_priority);
void  cuda_stream_free(int index, void *stream);
void *cuda_event_new(int index);
int   cuda_event_record(int index, void *event, void *stream);   /* stream NULL: the compute stream                           */
int   cuda_event_wait(int index, void *event, void *stream);
void  cuda_event_free(int index, void *event);
void *cuda_event_new_timed(int index);
int   cuda_event_ms(int index, void *from, void *to, double *ms);   /* 1: not passed yet                                          */
int   cuda_event_done(int index, void *event);         /* 1, 0, or negative: see td_device_ops                                */
int   cuda_event_synchronize(int index, void *event);

/* ---- times.c ---------------------------------------------------------------------------------------------------------------------- */
/* Around every launch on the compute stream: td__cuda_stream begins, td__cuda_launched ends. Two loads while nothing is timed. */
void cuda_times_before(void);
void cuda_times_after(const char *row);
int  cuda_times_begin(int index);
int  cuda_times_end(int index, td_kernel_time *into, int room);

/* ---- memory.c, copy.c -------------------------------------------------------------------------------------------------------------- */
void *cuda_alloc(int index, size_t bytes);
void  cuda_free(int index, void *block);
int   cuda_memory(int index, td_memory_stats *into);
void  cuda_memory_reset_peak(int index);
void  cuda_memory_trim(int index);
void  cuda_outside(int64_t bytes, td_memory_category category);   /* memory of another allocator is counted too; negative: no longer */
void  cuda_label(int index, void *block, td_memory_category category);
/* For memory that another stream than the compute stream uses: before its work starts. NULL or the compute stream: nothing to do. */
int   cuda_record(int index, void *block, void *stream);
/* What this thread takes (scratch above all) between begin and end stays reserved until release, also after it was given back: a recorded
 * graph writes there again and again. NULL: one is open, or no host memory. While one is open nothing is waited for or given
 * back to the driver. The release comes when no launch of the graph is under way, or to be ordered before later work. */
void *cuda_hold_begin(void);
void  cuda_hold_end(void *hold);
void  cuda_hold_release(void *hold);                   /* NULL is fine                                                        */
int   cuda_copy(int index, void *to, bool to_host, const void *from, bool from_host, size_t bytes);
/* ---- pinned.c --------------------------------------------------------------------------------------------------------------------------- */
void *cuda_host_alloc(int index, size_t bytes);
void  cuda_host_free(int index, void *block);
int   cuda_copy_async(int index, void *to, const void *from, size_t bytes, bool to_host, void *stream);

/* ---- trap.c ----------------------------------------------------------------------------------------------------------------------------- */
bool  cuda_trapped(bool wait, td_trapped *into);
void  cuda_trap_clear(void);

/* ---- cudnn.c, cudnn_open.c ----------------------------------------------------------------------------------------------------------- */
/* what tensor/cuda/conv2d.cu asks first (td__cuda_conv_library)                                                                        */
bool  cudnn_convolve(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add);
bool  cudnn_off(void);                                 /* TANDEM_CUDNN says so                                                    */
const char *cudnn_text(void);                          /* "cuDNN 9.19.0", or why there is none                                     */
bool  cudnn_describe(char *into, size_t size);         /* for describe.c                                                          */
extern bool (*td__cuda_conv_library)(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add);

/* ---- graph.c ---------------------------------------------------------------------------------------------------------------------------- */
extern __thread bool cuda_recording;                   /* this thread, what the compute stream is told                           */
int   cuda_graph_refuses(const char *what);            /* 0, or fail: it is recording (stream.c)                                 */
int   cuda_graph_begin(int index);
int   cuda_graph_end(int index, void **graph);
int   cuda_graph_launch(int index, void *graph);
void  cuda_graph_free(int index, void *graph);

/* ---- what tensor/cuda calls (its cuda.h is C++) ---------------------------------------------------------------------------------------- */
cudaStream_t td__cuda_stream(void);
void  td__cuda_launched(const char *row);
int   td__cuda_processors(void);
void *td__cuda_scratch(size_t bytes);
void  td__cuda_scratch_free(void *block);
int   td__cuda_read(void *into, const void *from, size_t n);
void  td__cuda_gemm(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                    int64_t ldb, double beta, void *c, int64_t ldc);
#endif
