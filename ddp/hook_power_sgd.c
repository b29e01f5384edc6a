/* ddp/hook_power_sgd.c: gradients cross as two thin matrices.
 *
 * Vogels, Karimireddy, Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization (NeurIPS 2019), algorithms 1 and 2. A parameter's
 * gradient M (m,k), this rank's share of the mean with what was lost before:
 *
 *     start      P = M Q                (m,r)    all-reduced
 *     second     P's columns made orthonormal; Q = M' P    (k,r)    all-reduced
 *     finish     the mean is P Q'; M - P Q'/ranks is added to the next M (what all ranks keep is then what the mean has lost); Q is where the next step begins
 *
 * Vectors, and matrices with (m+k)*r >= m*k, go with P as they are. The second round of a bucket begins when the bucket after the next is started, or at the end
 * of the backward: by what every rank knows, never by what has arrived, so that the sequence of collectives is the same everywhere. Every rank makes the mean
 * from the same P and Q: the same bits where the ranks' instruction sets and BLAS are the same.
 */
#include "ddp_impl.h"

/* place: in the bucket; p, q: where P and Q begin in their buffers; k 0: crosses whole, m elements. */
typedef struct { int64_t place, m, k, p, q; } matrix;

typedef enum { IDLE, WHOLE, FIRST, SECOND } stage;
typedef struct {
    matrix    *of;
    int        n;
    stage      stage;
    td_tensor *left;                   /* what was lost, as the bucket lies; NULL until it is needed                              */
    td_tensor *first, *second;         /* all P and whole ones; all Q                                                           */
    td_tensor *gradient;               /* of the bucket, between start and finish                                               */
    td_work   *work;
} part;

typedef struct {
    td_power_sgd_opts opts;
    int64_t  steps;                    /* ended                                                                             */
    uint64_t layout;
    int      parts;
    part    *of;
    int     *started, starts;          /* buckets in the order of this backward                                               */
    td_comm *comm;
    int      seconds;                  /* so many of them have begun their second round                                        */
} power;

static void drop_parts(power *s)
{
    for (int i = 0; i < s->parts; i++) {
        td_tensor *held[] = { s->of[i].left, s->of[i].first, s->of[i].second, s->of[i].gradient };
        for (size_t h = 0; h < TD_COUNT(held); h++)
            if (held[h])
                td_release(held[h]);
        td__free(s->of[i].of);
    }
    td__free(s->of);
    td__free(s->started);
    s->of = NULL;
    s->started = NULL;
    s->parts = s->starts = s->seconds = 0;
}

/* ---- what crosses of a bucket ------------------------------------------------------------------------------------------------------------------------- */

static td_tensor *p_of(const power *s, const part *p, const matrix *x)
{
    return td_reshape(td_narrow(p->first, 0, x->p, x->m * s->opts.rank), TD_SHAPE(x->m, s->opts.rank));
}

static td_tensor *q_of(const power *s, const part *p, const matrix *x)
{
    return td_reshape(td_narrow(p->second, 0, x->q, x->k * s->opts.rank), TD_SHAPE(x->k, s->opts.rank));
}

/* A random Q: the same on every rank, another for every matrix and step. */
static void draw(const power *s, const part *p, int bucket, int i)
{
    const matrix *x = &p->of[i];
    const uint64_t stream = ((uint64_t)s->steps << 32) | ((uint64_t)(unsigned)bucket << 20) | (uint64_t)(unsigned)i;
    td_assign(q_of(s, p, x), td_randn(TD_SHAPE(x->k, s->opts.rank), s->opts.seed, stream));
}

static int lay_out(const power *s, part *p, const td_ddp_hook_bucket *b)
{
    const int64_t r = s->opts.rank;
    int64_t first = 0, second = 0;
    p->of = td__calloc((size_t)b->parameters * sizeof *p->of);
    if (!p->of)
        return td__pending();
    p->n = b->parameters;
    for (int i = 0; i < b->parameters; i++) {
        const td_shape shape = td_shape_of(b->parameter[i]);
        const int64_t n = td_numel(b->parameter[i]), m = shape.ndim > 1 ? shape.dim[0] : n, k = m ? n / m : 0;
        const bool whole = shape.ndim < 2 || (m + k) * r >= n;
        p->of[i] = (matrix){ b->place[i], whole ? n : m, whole ? 0 : k, first, second };
        first += whole ? n : m * r;
        second += whole ? 0 : k * r;
    }
    const td_dtype t = td_dtype_of(b->gradient);
    p->first = td_keep(td_zeros_shared(b->comm, TD_SHAPE(first), t));
    p->second = td_keep(td_zeros_shared(b->comm, TD_SHAPE(second), t));
    p->left = td_keep(td_zeros(TD_SHAPE(td_numel(b->gradient)), t));
    for (int i = 0; i < p->n && !td__pending(); i++)
        if (p->of[i].k)
            draw(s, p, b->index, i);
    return td__pending();
}

static part *part_of(power *s, const td_ddp_hook_bucket *b)
{
    if (s->layout != b->layout || s->parts != b->buckets) {
        drop_parts(s);
        s->of = td__calloc((size_t)b->buckets * sizeof *s->of);
        s->started = td__calloc((size_t)b->buckets * sizeof *s->started);
        s->parts = s->of && s->started ? b->buckets : 0;
        s->layout = b->layout;
    }
    return s->parts ? &s->of[b->index] : NULL;
}

/* ---- rounds -------------------------------------------------------------------------------------------------------------------------------------------- */

static td_tensor *matrix_in(const matrix *x, td_tensor *bucket)
{
    return td_reshape(td_narrow(bucket, 0, x->place, x->m * x->k), TD_SHAPE(x->m, x->k));
}

static td_tensor *vector_in(const matrix *x, td_tensor *of, int64_t at)
{
    return td_narrow(of, 0, at, x->m);
}

/* Gram-Schmidt, each column twice: once is not enough for columns that nearly depend on those before. One that depends on them but for rounding becomes zero; made
 * a unit vector it would be noise, and at no right angle to the others. */
static void make_orthonormal(td_tensor *p, int64_t r)
{
    const td_dtype t = td_dtype_of(p);
    const double rounding = t == TD_F64 ? 1e-13 : 1e-6;
    for (int64_t i = 0; i < r; i++) {
        TD_SCOPE();
        td_tensor *column = td_narrow(p, 1, i, 1), *x = column, *was = td_sum(td_mul(x, x), NULL, 0, false);
        for (int64_t j = 0; j < 2 * i; j++) {
            td_tensor *other = td_narrow(p, 1, j % i, 1);
            x = td_sub(x, td_mul(other, td_sum(td_mul(other, x), NULL, 0, false)));
        }
        td_tensor *norm = td_sqrt(td_sum(td_mul(x, x), NULL, 0, false)), *least = td_scale(td_sqrt(was), rounding);
        td_tensor *depends = td_eq(td_maximum(norm, least), least);
        td_assign(column, td_where(depends, td_zeros(TD_SHAPE(1, 1), t), td_div(x, td_maximum(norm, td_full(TD_SCALAR, t, 1e-30)))));
    }
}

static int first_round(const power *s, part *p, td_ddp_hook_bucket *b)
{
    if (!s->opts.no_error_feedback)
        td_assign(b->gradient, td_add(b->gradient, p->left));
    for (int i = 0; i < p->n && !td__pending(); i++) {
        TD_SCOPE();
        const matrix *x = &p->of[i];
        if (x->k && s->opts.no_warm_start)
            draw(s, p, b->index, i);
        if (x->k)
            td_assign(p_of(s, p, x), td_matmul(matrix_in(x, b->gradient), q_of(s, p, x)));
        else
            td_assign(vector_in(x, p->first, x->p), vector_in(x, b->gradient, x->place));
    }
    b->bytes += (td_numel(p->first) + td_numel(p->second)) * (int64_t)td_dtype_size(td_dtype_of(p->first));
    p->work = td_all_reduce_start(b->comm, p->first, TD_SUM);
    p->stage = FIRST;
    return td__pending();
}

static int second_round(const power *s, part *p, td_comm *comm)
{
    int code = td_wait(p->work);
    p->work = NULL;
    for (int i = 0; i < p->n && !code; i++) {
        TD_SCOPE();
        const matrix *x = &p->of[i];
        if (!x->k)
            continue;
        make_orthonormal(p_of(s, p, x), s->opts.rank);
        td_assign(q_of(s, p, x), td_matmul(td_transpose(matrix_in(x, p->gradient), 0, 1), p_of(s, p, x)));
        code = td__pending();
    }
    if (!code)
        p->work = td_all_reduce_start(comm, p->second, TD_SUM);
    p->stage = SECOND;
    return code ? code : td__pending();
}

/* Second rounds until no more than `behind` started buckets have only their first. */
static int go_on(power *s, int behind)
{
    int code = 0;
    while (s->seconds + behind < s->starts && !code) {
        part *p = &s->of[s->started[s->seconds++]];
        if (p->stage == FIRST)
            code = second_round(s, p, s->comm);
    }
    return code;
}

static int make_mean(const power *s, part *p, td_ddp_hook_bucket *b)
{
    td_assign(p->left, b->gradient);
    for (int i = 0; i < p->n && !td__pending(); i++) {
        TD_SCOPE();
        const matrix *x = &p->of[i];
        if (x->k)
            td_assign(matrix_in(x, b->gradient), td_matmul(p_of(s, p, x), td_transpose(q_of(s, p, x), 0, 1)));
        else
            td_assign(vector_in(x, b->gradient, x->place), vector_in(x, p->first, x->p));
        td_tensor *left = x->k ? matrix_in(x, p->left) : vector_in(x, p->left, x->place);
        td_tensor *crossed = x->k ? td_scale(matrix_in(x, b->gradient), 1.0 / td_size(b->comm)) : left;
        td_assign(left, td_sub(left, crossed));
    }
    return td__pending();
}

/* ---- the hook ------------------------------------------------------------------------------------------------------------------------------------------- */

static int start(td_ddp_hook_bucket *b, void *user)
{
    power *s = user;
    part *p = part_of(s, b);
    if (!p)
        return -1;
    s->comm = b->comm;
    if (s->starts && s->started[s->starts - 1] >= b->index)    /* a backward that failed has left its list */
        s->starts = s->seconds = 0;
    s->started[s->starts++] = b->index;
    if (p->gradient)
        td_release(p->gradient);
    p->gradient = td_keep(b->gradient);
    if (s->steps < s->opts.start_step) {
        b->bytes += td_numel(b->gradient) * (int64_t)td_dtype_size(td_dtype_of(b->gradient));
        p->stage = WHOLE;
        p->work = td_all_reduce_start(b->comm, b->gradient, TD_SUM);
        return td__pending();
    }
    int code = p->left ? 0 : lay_out(s, p, b);
    code = code ? code : first_round(s, p, b);
    return code ? code : go_on(s, 2);
}

static int end(void *user)
{
    power *s = user;
    int code = go_on(s, 0);
    s->starts = s->seconds = 0;
    s->steps++;
    return code;
}

static int finish(td_ddp_hook_bucket *b, void *user)
{
    power *s = user;
    part *p = &s->of[b->index];
    int code = td_wait(p->work);
    p->work = NULL;
    if (!code && p->stage == SECOND)
        code = make_mean(s, p, b);
    p->stage = IDLE;
    td_release(p->gradient);
    p->gradient = NULL;
    return code;
}

static void drop(void *user)
{
    drop_parts(user);
    td__free(user);
}

int td_ddp_power_sgd_hook(td_ddp *ddp, const td_power_sgd_opts *opts)
{
    TD_ENTER();
    static const td_ddp_hook hook = { .name = "PowerSGD", .start = start, .end = end, .finish = finish, .free = drop };
    td_power_sgd_opts o = opts ? *opts : (td_power_sgd_opts){ 0 };
    o.rank = o.rank ? o.rank : 4;
    o.start_step = o.start_step == TD_ZERO ? 0 : o.start_step ? o.start_step : 10;
    if (td__pending())
        return td__pending();
    if (o.rank < 1 || o.rank > 1024)
        return td__fail(TD_ERR_ARGUMENT, "td_ddp_power_sgd_hook: rank is %lld, expected 1 to 1024", (long long)o.rank);
    if (o.start_step < 0)
        return td__fail(TD_ERR_ARGUMENT, "td_ddp_power_sgd_hook: start_step is %lld, expected 1 or more, or TD_ZERO", (long long)o.start_step);
    power *s = td__calloc(sizeof *s);
    if (!s)
        return td__pending();
    s->opts = o;
    int code = td_ddp_set_hook(ddp, &hook, s);
    if (code)
        td__free(s);
    return code;
}
