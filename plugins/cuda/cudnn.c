/* plugins/cuda/cudnn.c: convolutions through cuDNN, where it is and has something for them; else tensor/cuda/conv2d.cu computes.
 *
 * A plan is made when a convolution of its sizes, types, order and alignment is first wanted, and kept. TANDEM_CUDNN: "heuristic" (the default)
 * takes what cuDNN advises, which depends on the device and the library alone; "measure" times its first few proposals on the device, once per
 * shape, and takes the fastest: ranks may then differ in the last bits of their gradients, which the all-reduce makes one again; "off" leaves
 * cuDNN closed.
 */
#include "cuda_impl.h"
#include "cudnn_api.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 1024, PLANS_MOST = 4096, TIMED = 3 };
enum { CLOSED, OPEN, REFUSED };

typedef struct {
    int64_t n, c, h, w, o, kh, kw, oh, ow;
    int32_t stride, padding, dilation, groups, nhwc, mode, t, add, align[3], tf32;
} shape;
typedef struct plan { shape key; struct plan *next; dnn_plans with; } plan;     /* with.n 0: cuDNN has nothing                     */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int state;
static bool measures;
static void *handle;
static plan *plans[BUCKETS];
static int plan_count;

/* Under the lock, once: no cuDNN is said once, and is no error. */
static bool open_cudnn(void)
{
    if (state != CLOSED)
        return state == OPEN;
    const char *wish = cuda_host->env(TD_ENV_CUDNN);
    state = REFUSED;
    if (cudnn_off())
        return false;
    if (wish && wish[0] && strcmp(wish, "heuristic") != 0 && strcmp(wish, "measure") != 0)
        cuda_host->say("TANDEM_CUDNN is \"%s\", expected heuristic, measure or off; heuristic is taken", wish);
    measures = wish && strcmp(wish, "measure") == 0;
    const dnn_api *api = cudnn_library();
    int status = api ? api->create(&handle) : 0;
    if (api && !status)
        status = api->set_stream(handle, td__cuda_stream());
    if (!api)
        cuda_host->say("%s; convolutions use this library's own kernels, which are slower", cudnn_text());
    else if (status)
        cuda_host->say("cuDNN cannot be started: %s; convolutions use this library's own kernels, which are slower", api->text(status));
    else
        state = OPEN;
    return state == OPEN;
}

static int32_t alignment(const void *p)
{
    int32_t a = 16;
    while ((uintptr_t)p % (uintptr_t)a)
        a /= 2;
    return a;
}

/* The output's size as a convolution makes it: a transposed one with output padding may ask for another. */
static bool plain(int64_t size, int64_t window, int64_t out, const td_conv2d_shape *s)
{
    return (size + 2 * s->padding - s->dilation * (window - 1) - 1) / s->stride + 1 == out;
}

static void forget_plans(const dnn_api *api)
{
    for (int i = 0; i < BUCKETS; i++)
        while (plans[i]) {
            plan *next = plans[i]->next;
            cudnn_plans_drop(api, &plans[i]->with);
            free(plans[i]);
            plans[i] = next;
        }
    plan_count = 0;
}

static size_t bytes_out(const shape *k)
{
    const int64_t n = k->mode == 0 ? k->n * k->o * k->oh * k->ow : k->mode == 1 ? k->n * k->c * k->h * k->w :
                      k->o * (k->c / k->groups) * k->kh * k->kw;
    return (size_t)n * td_dtype_size((td_dtype)k->t);
}

/* Milliseconds of one run, or a negative number. */
static float timed(const dnn_api *api, const dnn_plan *p, void *out, const void *a, const void *b, cudaEvent_t begin, cudaEvent_t end)
{
    void *workspace = p->workspace ? td__cuda_scratch(p->workspace) : NULL;
    float ms = -1;
    int status = p->workspace && !workspace;
    cudaStream_t stream = td__cuda_stream();
    for (int i = 0; i <= TIMED && !status; i++) {
        if (i == 1 && cudaEventRecord(begin, stream) != cudaSuccess)
            status = 1;
        status = status ? status : cudnn_execute(api, handle, p, out, a, b, workspace);
    }
    if (!status && (cudaEventRecord(end, stream) != cudaSuccess || cudaEventSynchronize(end) != cudaSuccess ||
                    cudaEventElapsedTime(&ms, begin, end) != cudaSuccess))
        ms = -1;
    if (workspace)
        td__cuda_scratch_free(workspace);
    td__cuda_launched("cudnn measure");
    return ms;
}

/* While a graph is recorded nothing runs that could be timed: then the first that was advised it is. */
static bool recording(void)
{
    enum cudaStreamCaptureStatus s = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(td__cuda_stream(), &s) != cudaSuccess || s != cudaStreamCaptureStatusNone;
}

/* Leaves the fastest. What is computed goes to a place of its own. */
static void measure(const dnn_api *api, const shape *k, dnn_plans *p, const void *a, const void *b)
{
    cudaEvent_t begin = NULL, end = NULL;
    void *out = td__cuda_scratch(bytes_out(k));
    int best = 0;
    float least = -1;
    if (out && cudaEventCreateWithFlags(&begin, cudaEventDefault) == cudaSuccess && cudaEventCreateWithFlags(&end, cudaEventDefault) == cudaSuccess)
        for (int i = 0; i < p->n; i++) {
            const float ms = timed(api, p->plan + i, out, a, b, begin, end);
            if (ms >= 0 && (least < 0 || ms < least))
                best = i, least = ms;
        }
    if (begin)
        cudaEventDestroy(begin);
    if (end)
        cudaEventDestroy(end);
    if (out)
        td__cuda_scratch_free(out);
    for (int i = p->n - 1; i >= 0; i--)
        if (i != best)
            cudnn_plan_drop(api, p, i);
}

/* The plan of k, made when it is new; NULL: none, for want of memory even for that. Under the lock. */
static plan *plan_for(const dnn_api *api, const shape *k, const td_conv2d_shape *s, const void *a, const void *b)
{
    uint64_t h = 0;
    const unsigned char *bytes = (const unsigned char *)k;
    for (size_t i = 0; i < sizeof *k; i++)
        h = (h ^ bytes[i]) * 0x100000001B3u, h ^= h >> 29;
    plan **bucket = &plans[h % BUCKETS], *p = *bucket;
    while (p && memcmp(&p->key, k, sizeof *k) != 0)
        p = p->next;
    if (p)
        return p;
    if (plan_count >= PLANS_MOST)                      /* shapes that never come again must not pile up                          */
        forget_plans(api);
    p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->key = *k;
    if (plain(s->h, s->kh, s->oh, s) && plain(s->w, s->kw, s->ow, s))
        cudnn_plans(api, handle, k->mode, (td_dtype)k->t, s, k->add, (const int64_t[3]){ k->align[0], k->align[1], k->align[2] }, k->tf32,
                    measures && !recording() ? DNN_PLANS_MOST : 1, &p->with);
    if (p->with.n > 1)
        measure(api, k, &p->with, a, b);
    p->next = *bucket;
    *bucket = p;
    plan_count++;
    return p;
}

bool cudnn_convolve(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add)
{
    if (t == TD_F64 || s->n <= 0 || s->c <= 0 || s->o <= 0 || s->oh <= 0 || s->ow <= 0 || s->h <= 0 || s->w <= 0)
        return false;
    shape k;
    memset(&k, 0, sizeof k);                           /* padding is compared, too                                                */
    k.n = s->n, k.c = s->c, k.h = s->h, k.w = s->w, k.o = s->o, k.kh = s->kh, k.kw = s->kw, k.oh = s->oh, k.ow = s->ow;
    k.stride = s->stride, k.padding = s->padding, k.dilation = s->dilation, k.groups = s->groups, k.nhwc = s->nhwc;
    k.mode = mode, k.t = (int32_t)t, k.add = add, k.tf32 = t == TD_F32 && td_tf32_allowed();
    k.align[0] = alignment(out), k.align[1] = alignment(a), k.align[2] = alignment(b);
    td__cuda_stream();                                 /* makes the GPU this thread's: cuDNN takes the current one               */
    pthread_mutex_lock(&lock);
    const dnn_api *api = open_cudnn() ? cudnn_library() : NULL;
    plan *p = api ? plan_for(api, &k, s, a, b) : NULL;
    const bool has = p && p->with.n > 0;
    if (has) {
        void *workspace = p->with.plan[0].workspace ? td__cuda_scratch(p->with.plan[0].workspace) : NULL;
        td__cuda_stream();                             /* what is timed begins here                                              */
        int status = p->with.plan[0].workspace && !workspace ? 0 : cudnn_execute(api, handle, &p->with.plan[0], out, a, b, workspace);
        td__cuda_launched(row);
        if (workspace)
            td__cuda_scratch_free(workspace);
        if (status)
            cuda_host->fail(TD_ERR_DEVICE, "cuDNN cannot start the kernel of \"%s\" on cuda:%d: %s", row, cuda_index(), api->text(status));
    }
    pthread_mutex_unlock(&lock);
    return has;
}
