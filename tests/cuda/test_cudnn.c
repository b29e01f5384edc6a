/* tests/cuda/test_cudnn.c MODE: plugins/cuda/cudnn*.c over the fake cuDNN (fake_cudnn.c, opened as libcudnn.so.9) and the emulated kernels.
 *
 *   fake          results of all cases, who computed them, what is kept and given back
 *   measure       TANDEM_CUDNN=measure: proposals are timed, the fastest sound one is taken
 *   absent, old, broken, off: no cuDNN: one line, and our own kernels compute
 *   real          NVIDIA's library, where it is: it takes our descriptions, and for a GPU that is only described to it (an H200) it has sound plans
 *                 for every convolution of ResNet-50
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "conv_cases.h"
#include "cudnn_plan.c"
#include <cudnn.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours)
SAME(DNN_FLOAT, CUDNN_DATA_FLOAT); SAME(DNN_HALF, CUDNN_DATA_HALF); SAME(DNN_BFLOAT16, CUDNN_DATA_BFLOAT16);
SAME(DNN_TYPE_HANDLE, CUDNN_TYPE_HANDLE); SAME(DNN_TYPE_DATA_TYPE, CUDNN_TYPE_DATA_TYPE); SAME(DNN_TYPE_INT64, CUDNN_TYPE_INT64);
SAME(DNN_TYPE_FLOAT, CUDNN_TYPE_FLOAT); SAME(DNN_TYPE_VOID_PTR, CUDNN_TYPE_VOID_PTR); SAME(DNN_TYPE_CONVOLUTION_MODE, CUDNN_TYPE_CONVOLUTION_MODE);
SAME(DNN_TYPE_HEUR_MODE, CUDNN_TYPE_HEUR_MODE); SAME(DNN_TYPE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE); SAME(DNN_TYPE_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR);
SAME(DNN_CONVOLUTION, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR); SAME(DNN_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR); SAME(DNN_ENGINECFG, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
SAME(DNN_ENGINEHEUR, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR); SAME(DNN_EXECUTION_PLAN, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
SAME(DNN_CONVOLUTION_FORWARD, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
SAME(DNN_CONVOLUTION_BACKWARD_FILTER, CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR);
SAME(DNN_CONVOLUTION_BACKWARD_DATA, CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR);
SAME(DNN_OPERATIONGRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR); SAME(DNN_VARIANT_PACK, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR); SAME(DNN_TENSOR, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
SAME(DNN_CONV_COMP_TYPE, CUDNN_ATTR_CONVOLUTION_COMP_TYPE); SAME(DNN_CONV_MODE, CUDNN_ATTR_CONVOLUTION_CONV_MODE); SAME(DNN_CONV_DILATIONS, CUDNN_ATTR_CONVOLUTION_DILATIONS);
SAME(DNN_CONV_STRIDES, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES); SAME(DNN_CONV_POST_PADDINGS, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS);
SAME(DNN_CONV_PRE_PADDINGS, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS); SAME(DNN_CONV_SPATIAL_DIMS, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS);
SAME(DNN_HEUR_MODE, CUDNN_ATTR_ENGINEHEUR_MODE); SAME(DNN_HEUR_GRAPH, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH); SAME(DNN_HEUR_RESULTS, CUDNN_ATTR_ENGINEHEUR_RESULTS);
SAME(DNN_CFG_ENGINE, CUDNN_ATTR_ENGINECFG_ENGINE); SAME(DNN_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_HANDLE); SAME(DNN_PLAN_CONFIG, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
SAME(DNN_PLAN_WORKSPACE, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
#define OPERATION(OURS, THEIRS, FIRST, SECOND, THIRD)                                                        \
    SAME(DNN_##OURS##_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_##THEIRS##_ALPHA); SAME(DNN_##OURS##_BETA, CUDNN_ATTR_OPERATION_CONVOLUTION_##THEIRS##_BETA);  \
    SAME(DNN_##OURS##_CONV, CUDNN_ATTR_OPERATION_CONVOLUTION_##THEIRS##_CONV_DESC); SAME(DNN_##OURS##_##FIRST, CUDNN_ATTR_OPERATION_CONVOLUTION_##THEIRS##_##FIRST); \
    SAME(DNN_##OURS##_##SECOND, CUDNN_ATTR_OPERATION_CONVOLUTION_##THEIRS##_##SECOND); SAME(DNN_##OURS##_##THIRD, CUDNN_ATTR_OPERATION_CONVOLUTION_##THEIRS##_##THIRD)
OPERATION(FORWARD, FORWARD, W, X, Y); OPERATION(DATA, BWD_DATA, W, DX, DY); OPERATION(FILTER, BWD_FILTER, DW, X, DY);
SAME(DNN_GRAPH_HANDLE, CUDNN_ATTR_OPERATIONGRAPH_HANDLE); SAME(DNN_GRAPH_OPS, CUDNN_ATTR_OPERATIONGRAPH_OPS); SAME(DNN_TENSOR_ALIGNMENT, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
SAME(DNN_TENSOR_TYPE, CUDNN_ATTR_TENSOR_DATA_TYPE); SAME(DNN_TENSOR_DIMS, CUDNN_ATTR_TENSOR_DIMENSIONS); SAME(DNN_TENSOR_STRIDES, CUDNN_ATTR_TENSOR_STRIDES);
SAME(DNN_TENSOR_ID, CUDNN_ATTR_TENSOR_UNIQUE_ID); SAME(DNN_PACK_IDS, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS); SAME(DNN_PACK_POINTERS, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
SAME(DNN_PACK_WORKSPACE, CUDNN_ATTR_VARIANT_PACK_WORKSPACE); SAME(DNN_ENGINE_NUMERICAL_NOTE, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE);
SAME(DNN_CROSS_CORRELATION, CUDNN_CROSS_CORRELATION); SAME(DNN_HEUR_FALLBACK, CUDNN_HEUR_MODE_FALLBACK); SAME(DNN_HEUR_A, CUDNN_HEUR_MODE_A);
SAME(DNN_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_TENSOR_CORE); SAME(DNN_NOTE_DOWN_CONVERT_INPUTS, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS);
SAME(DNN_NOTE_REDUCED_PRECISION_REDUCTION, CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION); SAME(DNN_NOTE_NONDETERMINISTIC, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
SAME(DNN_NOTE_COUNT, CUDNN_NUMERICAL_NOTE_TYPE_COUNT);

/* ---- what the plug-in would bring ------------------------------------------------------------------------------------------------------- */
const td_host *cuda_host = &td__host;
int cuda_index(void) { return 0; }
static float clock_ms = 1000;
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { *e = flags == cudaEventDefault ? malloc(1) : NULL; return *e ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { (void)e, (void)s; return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { (void)e; return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { (void)a, (void)b; *ms = clock_ms -= 1; return cudaSuccess; }   /* each is faster */
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }

static bool captured;
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status)
{
    (void)s;
    *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

static char room[CONV_ROOM] __attribute__((aligned(256)));
static void move(void *to, const void *from, size_t bytes, bool to_device) { (void)to_device; memcpy(to, from, bytes); }
static int (*live)(void), (*runs)(int), (*plans)(void);

static void *from_fake(const char *name)
{
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
    return library ? dlsym(library, name) : NULL;
}

static int all_cases(td_dtype t, bool nhwc, bool add, int offset)
{
    int bad = 0;
    for (size_t i = 0; i < TD_COUNT(conv_cases); i++)
        bad += conv_check(&conv_cases[i], t, nhwc, add, offset, &td__cuda_kernels, room, move);
    return bad;
}

static void results(void **state)
{
    (void)state;
    static const td_dtype types[] = { TD_F32, TD_BF16, TD_F16, TD_F64 };
    int bad = 0;
    for (size_t t = 0; t < TD_COUNT(types); t++)
        for (int k = 0; k < 4; k++)
            bad += all_cases(types[t], k & 1, k & 2, 0);
    assert_int_equal(bad, 0);
    assert_non_null(runs = (int (*)(int))from_fake("fake_cudnn_runs"));
    assert_non_null(plans = (int (*)(void))from_fake("fake_cudnn_plans"));
    assert_non_null(live = (int (*)(void))from_fake("fake_cudnn_live"));
    assert_int_equal(runs(0), 0);                      /* not deterministic                                                       */
    assert_int_equal(runs(2), 0);                      /* rounds its sums                                                         */
    assert_int_equal(runs(1), 2 * 2 * 3 * 3);          /* tensor cores: 16 bits, channels last, packs of 8: three of the cases     */
    assert_int_equal(runs(3), (3 * 4 * 9 - 2 * 2 * 3) * 3);       /* the rest of three types, but for the case that nothing runs   */
}

/* A second time nothing is planned anew, and what lives are the plans with what they are made of. */
static void kept(void **state)
{
    (void)state;
    const int before = plans(), alive = live();
    assert_int_equal(all_cases(TD_BF16, true, true, 0), 0);
    assert_int_equal(plans(), before);
    assert_int_equal(live(), alive);
    assert_int_equal(alive, before * (DNN_PARTS + 2));
}

static void not_aligned(void **state)
{
    (void)state;
    assert_int_equal(all_cases(TD_BF16, true, false, 1), 0);
    assert_int_equal(all_cases(TD_F32, false, true, 3), 0);
}

static void tf32(void **state)
{
    (void)state;
    runs(1);
    td_allow_tf32(true);
    assert_int_equal(conv_check(&conv_cases[0], TD_F32, true, false, 0, &td__cuda_kernels, room, move), 0);
    td_allow_tf32(false);
    assert_int_equal(runs(1), 3);
    assert_int_equal(conv_check(&conv_cases[0], TD_F32, true, false, 0, &td__cuda_kernels, room, move), 0);
    assert_int_equal(runs(1), 0);
}

/* A transposed convolution whose result is larger than cuDNN's formula says. */
static void other_size(void **state)
{
    (void)state;
    conv_case odd = { "output padding", { .n = 1, .c = 3, .h = 8, .w = 8, .o = 2, .kh = 3, .kw = 3, .oh = 3, .ow = 3, .stride = 1, .dilation = 2, .groups = 1 } };
    runs(3);
    td__cuda_kernels.conv2d_grad_x(TD_F32, &odd.s, room, room + 4096, room + 8192, NULL, false);
    assert_int_equal(runs(3), 0);
}

static void measured(void **state)
{
    (void)state;
    assert_int_equal(conv_check(&conv_cases[0], TD_BF16, true, true, 0, &td__cuda_kernels, room, move), 0);
    assert_non_null(runs = (int (*)(int))from_fake("fake_cudnn_runs"));
    assert_non_null(live = (int (*)(void))from_fake("fake_cudnn_live"));
    assert_int_equal(runs(0) + runs(2), 0);
    assert_int_equal(runs(1), 3 * 4);                  /* a warm-up and three timed ones of each product                         */
    assert_int_equal(runs(3), 3 * 5);                  /* those, and then it was the faster one                                   */
    assert_int_equal(live(), 3 * (DNN_PARTS + 2));
    captured = true;                                   /* nothing is timed while a graph is recorded                              */
    assert_int_equal(conv_check(&conv_cases[1], TD_BF16, true, false, 0, &td__cuda_kernels, room, move), 0);
    captured = false;
    assert_int_equal(runs(1), 3);
    assert_int_equal(runs(3), 0);
}

static void own_kernels(void **state)
{
    (void)state;
    assert_int_equal(all_cases(TD_F32, false, false, 0), 0);
    assert_int_equal(all_cases(TD_BF16, true, true, 0), 0);
    if ((runs = (int (*)(int))from_fake("fake_cudnn_runs")))
        assert_int_equal(runs(1) + runs(3), 0);
    print_message("%s\n", cudnn_text());
}

/* Everything up to the graph, which wants a GPU. */
static void real(void **state)
{
    (void)state;
    const dnn_api *api = cudnn_library();
    if (!api) {
        print_message("%s\n", cudnn_text());
        skip();
    }
    for (int i = 0; i < 10 * 2 * 3 * 3; i++) {
        const int64_t align[3] = { 16, 16, 16 };
        td_conv2d_shape s = conv_cases[i % 10].s;
        s.nhwc = i / 10 % 2;
        work w = { .api = api };
        graph(&w, i / 20 % 3, i / 60 == 0 ? TD_F32 : i / 60 == 1 ? TD_BF16 : TD_F16, &s, i % 7 == 0, align);
        if (w.objects != DNN_PARTS)
            print_error("%s: %s after %d objects\n", conv_cases[i % 10].name, api->text(w.status), w.objects);
        assert_int_equal(w.objects, DNN_PARTS);        /* the graph's own object is the last: the operation was finished            */
        while (w.objects > 0)
            assert_int_equal(api->drop(w.object[--w.objects]), 0);
    }
}

/* ---- cuDNN asked without a device: since 9.8 it takes a description of one (CUDNN_ATTR_…_DEVICEPROP) where a handle would be ----------------- */
static const char h200[] =
    "{\"deviceVer\":900,\"driverVer\":13000,\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"
    "\"multiProcessorCount\":132,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":232448,"
    "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,"
    "\"pciDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1,\"smClockRateKHz\":1980000,\"memClockRateKHz\":3201000,\"l2CacheSize\":62914560,"
    "\"totalGlobalMem\":150110011392,\"cudaDeviceId\":0,\"deviceName\":\"H200\"}";
static const dnn_api *nvidia;
static dnn_object device;

static int set_without_handle(dnn_object o, int name, int type, int64_t n, const void *values)
{
    if (name == DNN_GRAPH_HANDLE)
        return 0;
    if (name == DNN_PLAN_HANDLE)
        return nvidia->set(o, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, DNN_TYPE_DESCRIPTOR, 1, &device);
    int status = name == DNN_HEUR_MODE ? nvidia->set(o, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, DNN_TYPE_DESCRIPTOR, 1, &device) : 0;
    return status ? status : nvidia->set(o, name, type, n, values);
}

static void real_plans(void **state)
{
    (void)state;
    static const struct { int c, h, o, k, stride; } layers[] = {
        { 3, 224, 64, 7, 2 }, { 64, 56, 64, 1, 1 }, { 64, 56, 64, 3, 1 }, { 64, 56, 256, 1, 1 }, { 256, 56, 64, 1, 1 }, { 256, 56, 128, 1, 1 },
        { 128, 56, 128, 3, 2 }, { 128, 28, 512, 1, 1 }, { 256, 56, 512, 1, 2 }, { 512, 28, 128, 1, 1 }, { 128, 28, 128, 3, 1 }, { 512, 28, 256, 1, 1 },
        { 256, 28, 256, 3, 2 }, { 256, 14, 1024, 1, 1 }, { 512, 28, 1024, 1, 2 }, { 1024, 14, 256, 1, 1 }, { 256, 14, 256, 3, 1 }, { 1024, 14, 512, 1, 1 },
        { 512, 14, 512, 3, 2 }, { 512, 7, 2048, 1, 1 }, { 1024, 14, 2048, 1, 2 }, { 2048, 7, 512, 1, 1 }, { 512, 7, 512, 3, 1 },
    };
    nvidia = cudnn_library();
    int status = nvidia && nvidia->version() >= 90800 ? nvidia->make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &device) : 1;
    status = status ? status : nvidia->set(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)sizeof h200 - 1, h200);
    status = status ? status : nvidia->finish(device);
    if (status) {
        print_message("this cuDNN cannot be asked about a GPU that is not there\n");
        skip();
    }
    dnn_api api = *nvidia;
    api.set = set_without_handle;
    size_t most = 0;
    for (size_t i = 0; i < TD_COUNT(layers) * 5; i++) {
        const int mode = i % 5 < 3 ? (int)(i % 5) : (int)(i % 5) - 2, add = i % 5 > 2, k = layers[i / 5].k, h = layers[i / 5].h;
        td_conv2d_shape s = { .n = 256, .c = layers[i / 5].c, .h = h, .w = h, .o = layers[i / 5].o, .kh = k, .kw = k, .stride = layers[i / 5].stride,
                              .padding = k / 2, .dilation = 1, .groups = 1, .nhwc = true };
        dnn_plans p;
        s.oh = s.ow = (h + 2 * s.padding - k) / s.stride + 1;
        cudnn_plans(&api, NULL, mode, TD_BF16, &s, add, (const int64_t[3]){ 16, 16, 16 }, false, 1, &p);
        if (p.n != 1)
            print_error("%d channels of %d x %d to %d, %d x %d, mode %d, add %d: no plan\n", (int)s.c, h, h, (int)s.o, k, k, mode, add);
        assert_int_equal(p.n, 1);
        most = p.plan[0].workspace > most ? p.plan[0].workspace : most;
        cudnn_plans_drop(&api, &p);
    }
    print_message("ResNet-50, 256 pictures in bf16: a workspace of at most %.0f MB\n", (double)most / 1e6);
    nvidia->drop(device);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest fake[] = { cmocka_unit_test(results), cmocka_unit_test(kept), cmocka_unit_test(not_aligned), cmocka_unit_test(tf32),
                                       cmocka_unit_test(other_size) };
    const struct CMUnitTest timing[] = { cmocka_unit_test(measured) }, own[] = { cmocka_unit_test(own_kernels) };
    const struct CMUnitTest theirs[] = { cmocka_unit_test(real), cmocka_unit_test(real_plans) };
    const char *mode = argc > 1 ? argv[1] : "fake";
    td__cuda_conv_library = cudnn_convolve;
    if (strcmp(mode, "fake") == 0)
        return cmocka_run_group_tests(fake, NULL, NULL);
    if (strcmp(mode, "measure") == 0)
        return cmocka_run_group_tests(timing, NULL, NULL);
    return strcmp(mode, "real") == 0 ? cmocka_run_group_tests(theirs, NULL, NULL) : cmocka_run_group_tests(own, NULL, NULL);
}
