/* plugins/cuda/graph.c: what a step starts on the compute stream, recorded once and launched as a whole (td_capture).
 *
 * Between begin and end nothing runs: kernels, products and copies on the GPU become nodes of a graph, with their arguments as they are. Other streams
 * join by events. Memory taken meanwhile belongs to the graph until it is freed, since every launch writes there again. What the host would have
 * to wait for, or give, has no place in a graph and is one sentence.
 */
#include "cuda_impl.h"
#include <stdlib.h>

typedef struct { cudaGraphExec_t exec; void *hold; } graph;
static graph *open;                                    /* being recorded                                                       */

static void drop(graph *g)
{
    cuda_hold_release(g->hold);
    free(g);
}

int cuda_graph_begin(int index)
{
    int code = cuda_use(index);
    if (code)
        return code;
    graph *g = open ? NULL : calloc(1, sizeof *g);
    if (!g)
        return cuda_host->fail(open ? TD_ERR_STATE : TD_ERR_MEMORY, open ? "a step is being recorded already" : "no memory for a graph");
    g->hold = cuda_hold_begin();
    cudaError_t e = g->hold ? cudaStreamBeginCapture(cuda_compute, cudaStreamCaptureModeThreadLocal) : cudaErrorMemoryAllocation;
    if (e != cudaSuccess) {
        if (g->hold)
            cuda_hold_end(g->hold);
        drop(g);
        return cuda_failed(e, "recording the compute stream cannot begin");
    }
    open = g;
    cuda_recording = true;
    return 0;
}

int cuda_graph_end(int index, void **into)
{
    graph *g = open;
    int code = cuda_use(index);
    if (code || !g || !cuda_recording)
        return code ? code : cuda_host->fail(TD_ERR_STATE, "no recording of the compute stream is under way");
    cudaGraph_t recorded = NULL;
    open = NULL;
    cuda_recording = false;
    cudaError_t e = cudaStreamEndCapture(cuda_compute, &recorded);
    cuda_hold_end(g->hold);
    if (e == cudaSuccess && into)
        e = cudaGraphInstantiate(&g->exec, recorded, 0);
    if (recorded)
        cudaGraphDestroy(recorded);
    if (e == cudaSuccess && into) {
        *into = g;
        return 0;
    }
    drop(g);
    cudaGetLastError();                                /* a recording that is given up has failed already                          */
    return into ? cuda_failed(e, "the recorded step cannot become a graph") : 0;
}

int cuda_graph_launch(int index, void *recorded)
{
    int code = cuda_use(index);
    if (code)
        return code;
    cudaError_t e = cudaGraphLaunch(((graph *)recorded)->exec, cuda_compute);
    atomic_store_explicit(&cuda_last_row, "a captured step", memory_order_relaxed);
    return e == cudaSuccess ? 0 : cuda_failed(e, "the captured step cannot be started");
}

void cuda_graph_free(int index, void *recorded)
{
    graph *g = recorded;
    if (!g || cuda_use(index))
        return;
    cudaStreamSynchronize(cuda_compute);               /* a launch may be under way                                            */
    cudaGraphExecDestroy(g->exec);
    drop(g);
}
