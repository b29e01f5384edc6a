/* tests/cuda/emulate_graph.cpp: graphs of the emulated device (emulate_graph.h), and the matrix products, which are launches like any other.
 */
#include <set>
#include <string.h>
#include <vector>
#include "emulate_graph.h"
#include "emulate_later.h"
#include "../../tensor/kernels.h"

extern "C" int td__fail(int code, const char *format, ...);

namespace {
struct back { void *block; void (*give)(void *); };
struct graph {
    std::vector<std::function<void()>> work;
    std::set<void *> taken;
    std::vector<back> kept;
};
graph *open;
std::vector<graph *> graphs;
}

bool td__emulated_later(const std::function<void()> &work)
{
    if (open)
        open->work.push_back(work);
    return open;
}

bool td__emulated_recording(void) { return open; }
bool td__emulated_call(void (*fn)(void *), void *of) { return td__emulated_later([=] { fn(of); }); }

void td__emulated_move(void *to, const void *from, size_t n)
{
    if (!td__emulated_later([=] { memmove(to, from, n); }))
        memmove(to, from, n);
}

int td__emulated_refuses(const char *what)
{
    return open ? td__fail(TD_ERR_STATE, "the step cannot become a graph of the GPU: in it %s, and a launch asks nobody", what) : 0;
}

void td__emulated_taken(void *block)
{
    if (open)
        open->taken.insert(block);
}

bool td__emulated_keeps(void *block, void (*give)(void *))
{
    graph *keeper = open;
    for (size_t i = 0; i < graphs.size() && !keeper; i++)
        if (graphs[i]->taken.count(block))
            keeper = graphs[i];
    if (keeper)
        keeper->kept.push_back(back{ block, give });
    return keeper;
}

int td__emulated_graph_begin(int)
{
    if (open)
        return td__fail(TD_ERR_STATE, "a step is being recorded already");
    open = new graph;
    return 0;
}

int td__emulated_graph_end(int, void **into)
{
    graph *g = open;
    open = NULL;
    graphs.push_back(g);
    if (into)
        *into = g;
    else
        td__emulated_graph_free(0, g);
    return 0;
}

int td__emulated_graph_launch(int, void *recorded)
{
    for (const auto &work : ((graph *)recorded)->work)
        work();
    return 0;
}

void td__emulated_graph_free(int, void *recorded)
{
    graph *g = (graph *)recorded;
    for (size_t i = 0; i < graphs.size(); i++)
        if (graphs[i] == g)
            graphs.erase(graphs.begin() + (long)i);
    for (const back &b : g->kept)
        b.give(b.block);
    delete g;
}

/* ---- matrix products (emulate_gemm.c) ---------------------------------------------------------------------------------------------------- */
#define PRODUCT(name, parameters, arguments)                                                                 \
    extern "C" void td__emulated_##name parameters;                                                          \
    extern "C" __attribute__((weak)) void td__cuda_##name parameters                                                               \
    {                                                                                                        \
        if (!td__emulated_later([=] { td__emulated_##name arguments; }))                                     \
            td__emulated_##name arguments;                                                                   \
    }
/* Whether it can is found by doing it; what it writes is written again by every launch. */
#define FUSED(name, parameters, arguments)                                                                   \
    extern "C" bool td__emulated_##name parameters;                                                          \
    extern "C" __attribute__((weak)) bool td__cuda_##name parameters                                                               \
    {                                                                                                        \
        bool done = td__emulated_##name arguments;                                                           \
        if (done)                                                                                            \
            td__emulated_later([=] { td__emulated_##name arguments; });                                      \
        return done;                                                                                         \
    }
/* weak: a test may bring plugins/cuda/blas.c instead */
PRODUCT(gemm, (td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b, int64_t ldb,
               double beta, void *c, int64_t ldc), (t, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
PRODUCT(gemm_batched, (td_dtype t, bool ta, bool tb, int64_t count, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda,
                       int64_t step_a, const void *b, int64_t ldb, int64_t step_b, double beta, void *c, int64_t ldc, int64_t step_c),
        (t, ta, tb, count, m, n, k, alpha, a, lda, step_a, b, ldb, step_b, beta, c, ldc, step_c))
FUSED(gemm_bias, (td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb, const void *bias,
                  bool with_gelu, void *pre, void *c), (t, ta, tb, m, n, k, a, lda, b, ldb, bias, with_gelu, pre, c))
FUSED(gemm_gelu_grad, (td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                       const void *pre, void *c), (t, ta, tb, m, n, k, a, lda, b, ldb, pre, c))
FUSED(gemm_sums, (td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb, double beta,
                  void *c, void *sums, bool of_b), (t, ta, tb, m, n, k, a, lda, b, ldb, beta, c, sums, of_b))
