/* plugins/cuda/blas_choose.c: which of cuBLASLt's algorithms computes a product.
 *
 * Standard is the first that it advises: by its own model, the same in every run and on every rank, so the same bits. TANDEM_GEMM=measure
 * times those that it advises on the product's own operands when a shape is first met, and keeps the fastest. Which one that is can differ
 * from run to run and from rank to rank, and with it the order of sums: so what was measured is written to TANDEM_GEMM_FILE, where there is
 * one, and what stands there is used and not measured again, with either setting. A line holds for one release of cuBLASLt and one kind of
 * GPU; others are passed over. Whatever the algorithm, the same one gives the same bits every time.
 *
 * A result that is added to is not spoilt by measuring: it goes to scratch. Nothing is measured while a CUDA graph is recorded.
 */
#include "blas.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CANDIDATES = 8, ROUNDS = 5, LINE = 1024 };

typedef struct known {
    struct known *next;
    blas_shape x;
    cublasLtMatmulAlgo_t algorithm;
} known;

static bool measures;
static const char *file;
static known *from_file;

/* ---- the file: a line is  RELEASE PROCESSORS : the shape's numbers : the algorithm's eight words ------------------------------------------- */

enum { LONGS = 10, SHORTS = 12, WORDS = 8 };
typedef struct { int64_t longs[LONGS]; int32_t shorts[SHORTS]; } numbers;    /* a blas_shape, to be counted through              */
_Static_assert(sizeof(numbers) == sizeof(blas_shape) && offsetof(blas_shape, t) == sizeof(int64_t[LONGS]), "the two lie alike");

/* the next number of the line, or false */
static bool next_number(char **at, int base, uint64_t *into)
{
    char *end;
    errno = 0;
    *into = base == 16 ? strtoull(*at, &end, base) : (uint64_t)strtoll(*at, &end, base);
    const bool well = end != *at && errno == 0;
    *at = end;
    return well;
}

/* One line: 0, 1 where it is another machine's, -1 where it is none. */
static int read_line(char *line, known *into)
{
    uint64_t v, release, processors;
    numbers x = { 0 };
    char *at = line;
    bool well = next_number(&at, 10, &release) && next_number(&at, 10, &processors) && strncmp(at, " :", 2) == 0;
    at += well ? 2 : 0;
    for (int i = 0; i < LONGS && well; i++)
        if ((well = next_number(&at, 10, &v)))
            x.longs[i] = (int64_t)v;
    for (int i = 0; i < SHORTS && well; i++)
        if ((well = next_number(&at, 10, &v)))
            x.shorts[i] = (int32_t)v;
    well = well && strncmp(at, " :", 2) == 0;
    at += well ? 2 : 0;
    for (int i = 0; i < WORDS && well; i++)
        if ((well = next_number(&at, 16, &v)))
            into->algorithm.data[i] = v;
    memcpy(&into->x, &x, sizeof x);
    if (!well || at[strspn(at, " \n")] != '\0')
        return -1;
    return release == cublasLtGetVersion() && processors == (uint64_t)td__cuda_processors() ? 0 : 1;
}

static int read_file(void)
{
    char line[LINE];
    int number = 0, code = 0;
    FILE *f = fopen(file, "r");
    if (!f && errno == ENOENT && measures)             /* it will be                                                           */
        return 0;
    if (!f)
        return cuda_host->fail(TD_ERR_IO, "TANDEM_GEMM_FILE: %s cannot be read: %s", file, strerror(errno));
    while (!code && fgets(line, sizeof line, f)) {
        number++;
        if (line[0] == '#' || line[0] == '\n')
            continue;
        known *k = calloc(1, sizeof *k);
        const int what = k ? read_line(line, k) : -1;
        if (!k)
            code = cuda_host->fail(TD_ERR_MEMORY, "%zu bytes for a line of %s cannot be had", sizeof *k, file);
        else if (what < 0)
            code = cuda_host->fail(TD_ERR_FORMAT, "TANDEM_GEMM_FILE: line %d of %s is no algorithm of a matrix product", number, file);
        if (code || what > 0) {
            free(k);
            continue;
        }
        known **end = &from_file;                      /* the first of several lines counts                                     */
        while (*end)
            end = &(*end)->next;
        *end = k;
    }
    fclose(f);
    return code;
}

/* One write: several processes may append. */
static int write_line(const blas_plan *p)
{
    char line[LINE];
    numbers x;
    memcpy(&x, &p->key, sizeof x);
    int n = snprintf(line, sizeof line, "%zu %d :", cublasLtGetVersion(), td__cuda_processors());
    for (int i = 0; i < LONGS; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, " %" PRId64, x.longs[i]);
    for (int i = 0; i < SHORTS; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, " %" PRId32, x.shorts[i]);
    n += snprintf(line + n, sizeof line - (size_t)n, " :");
    for (int i = 0; i < WORDS; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, " %016" PRIx64, p->algorithm.data[i]);
    n += snprintf(line + n, sizeof line - (size_t)n, "\n");
    FILE *f = fopen(file, "a");
    bool well = f && setvbuf(f, NULL, _IOFBF, 2 * LINE) == 0 && fwrite(line, 1, (size_t)n, f) == (size_t)n;
    if (f && fclose(f) != 0)
        well = false;
    return well ? 0 : cuda_host->fail(TD_ERR_IO, "TANDEM_GEMM_FILE: %s cannot be written: %s", file, strerror(errno));
}

int blas_choose_open(void)
{
    const char *how = cuda_host->env(TD_ENV_GEMM);
    if (how && strcmp(how, "measure") != 0 && strcmp(how, "heuristic") != 0)
        return cuda_host->fail(TD_ERR_ARGUMENT, "TANDEM_GEMM is \"%.40s\": expected heuristic or measure", how);
    measures = how && strcmp(how, "measure") == 0;
    file = cuda_host->env(TD_ENV_GEMM_FILE);
    while (from_file) {
        known *next = from_file->next;
        free(from_file);
        from_file = next;
    }
    return file ? read_file() : 0;
}

/* ---- advice ------------------------------------------------------------------------------------------------------------------------------- */

static cublasStatus_t advise(blas_plan *p, cublasLtMatmulHeuristicResult_t *found, int most, int *count)
{
    const blas_shape *x = &p->key;
    /* 16-bit partial sums would be rounded twice and more: float ones, in the workspace */
    const uint32_t sums = td__is_half((td_dtype)x->t) ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_MASK;
    const uint32_t first = (uint32_t)x->align_b, second = (uint32_t)x->align_a, result = (uint32_t)x->align_c;
    cublasLtMatmulPreferenceOpaque_t wish;
    cublasStatus_t s = cublasLtMatmulPreferenceInit(&wish);
#define WISH(what, value)                                                                                    \
    if (s == CUBLAS_STATUS_SUCCESS)                                                                          \
        s = cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_##what, &(value), sizeof(value))
    WISH(MAX_WORKSPACE_BYTES, blas_workspace_size);
    WISH(REDUCTION_SCHEME_MASK, sums);
    WISH(MIN_ALIGNMENT_A_BYTES, first);
    WISH(MIN_ALIGNMENT_B_BYTES, second);
    WISH(MIN_ALIGNMENT_C_BYTES, result);
    WISH(MIN_ALIGNMENT_D_BYTES, result);
    *count = 0;
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulAlgoGetHeuristic(blas_handle, &p->how, &p->a, &p->b, &p->c, &p->c, &wish, most, found, count);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    return *count > 0 ? found[0].state : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* ---- measuring ---------------------------------------------------------------------------------------------------------------------------- */

static bool recorded_only(void)
{
    enum cudaStreamCaptureStatus s = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(td__cuda_stream(), &s) != cudaSuccess || s != cudaStreamCaptureStatusNone;
}

/* ms of one run, or negative: it cannot run */
static double time_one(blas_plan *p, const blas_args *args, void *into, const cublasLtMatmulHeuristicResult_t *f, cudaEvent_t before, cudaEvent_t after)
{
    float ms = 0;
    const cudaStream_t stream = td__cuda_stream();
    bool well = cudaEventRecord(before, stream) == cudaSuccess;
    well = well && blas_start(p, args, into, &f->algo, f->workspaceSize) == CUBLAS_STATUS_SUCCESS;
    well = well && cudaEventRecord(after, stream) == cudaSuccess && cudaEventSynchronize(after) == cudaSuccess;
    return well && cudaEventElapsedTime(&ms, before, after) == cudaSuccess ? (double)ms : -1;
}

/* The number of the fastest: the least of several rounds in turns, the first (cuBLASLt's own order) of equals. */
static int fastest(blas_plan *p, const blas_args *args, void *into, const cublasLtMatmulHeuristicResult_t *found, int count)
{
    double least[CANDIDATES];
    cudaEvent_t before = NULL, after = NULL;
    int best = 0;
    for (int i = 0; i < count; i++)
        least[i] = -1;
    if (cudaEventCreate(&before) == cudaSuccess && cudaEventCreate(&after) == cudaSuccess)
        for (int round = 0; round <= ROUNDS; round++)  /* round 0 warms up                                                      */
            for (int i = 0; i < count; i++) {
                if (found[i].state != CUBLAS_STATUS_SUCCESS || (round > 1 && least[i] < 0))
                    continue;
                const double ms = time_one(p, args, into, &found[i], before, after);
                if (round == 1 || (round > 1 && ms < least[i]))
                    least[i] = ms;
            }
    for (int i = 1; i < count; i++)
        if (least[i] >= 0 && (least[best] < 0 || least[i] < least[best]))
            best = i;
    if (before)
        cudaEventDestroy(before);
    if (after)
        cudaEventDestroy(after);
    return best;
}

static int measure(blas_plan *p, const blas_args *args, const cublasLtMatmulHeuristicResult_t *found, int count, int *best)
{
    const blas_shape *x = &p->key;
    void *into = args->c;
    if (x->reads_c) {
        const int64_t elements = (x->count - 1) * x->step_c + (x->m - 1) * x->ldc + x->n;
        into = td__cuda_scratch((size_t)elements * td_dtype_size((td_dtype)x->t));
        if (!into)
            return TD_ERR_MEMORY;
    }
    *best = fastest(p, args, into, found, count);
    if (into != args->c)
        td__cuda_scratch_free(into);
    return 0;
}

int blas_choose(blas_plan *p, const blas_args *args, cublasStatus_t *s)
{
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int count = 0, best = 0, code = 0;
    memset(found, 0, sizeof found);
    for (const known *k = from_file; k; k = k->next)
        if (memcmp(&k->x, &p->key, sizeof k->x) == 0 &&
            cublasLtMatmulAlgoCheck(blas_handle, &p->how, &p->a, &p->b, &p->c, &p->c, &k->algorithm, &found[0]) == CUBLAS_STATUS_SUCCESS &&
            found[0].workspaceSize <= blas_workspace_size) {
            p->algorithm = k->algorithm;
            p->workspace = found[0].workspaceSize;
            return 0;
        }
    const bool several = measures && !recorded_only();
    *s = advise(p, found, several ? CANDIDATES : 1, &count);
    if (*s != CUBLAS_STATUS_SUCCESS)
        return 0;
    if (several && count > 1)
        code = measure(p, args, found, count, &best);
    if (code)
        return code;
    p->algorithm = found[best].algo;
    p->workspace = found[best].workspaceSize;
    return several && file ? write_line(p) : 0;
}
