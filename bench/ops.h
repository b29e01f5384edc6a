/* bench/ops.h: what the files of bench/ops share: rows, the work that a row must do at least, and the limits that do nothing but that work. */
#ifndef TD_BENCH_OPS_H
#define TD_BENCH_OPS_H
#include <stdbool.h>
#include <stdint.h>
#include <tandem.h>

enum { SMALL, CACHED, LARGE, SIZES };                /* about 0.2 MB, 10 MB and 150 MB are touched                    */
enum { FORWARD, GRADIENT, PASSES };
typedef enum { EXP, LOG, TANH, ERF, POW, DIVIDE, ROUTINES } ops_routine;   /* POW: any exponent                        */

/* op(a) (m,k) times op(b) (k,n), `count` of them side by side */
typedef struct { bool ta, tb; int m, n, k, count; } ops_product;

/* What one pass must do at least. Products and flops come on top of each other and of the rest; of the rest the slower counts: moving the
 * bytes, or calling the routines. */
typedef struct {
    double read, written;                            /* bytes                                                          */
    double calls[ROUTINES];                          /* elements through each routine                                  */
    double flops;                                    /* of convolutions and attention                                  */
    ops_product product[6];
    int products;
} ops_work;

enum { OPS_IN = 8, OPS_OUT = 1 << 8 };               /* OPS_OUT in `reads`: the first result                           */

/* One row at one size. */
typedef struct ops_row ops_row;
typedef struct {
    td_tensor *in[OPS_IN];                           /* kept                                                           */
    int n;
    unsigned leaves;                                 /* bit i: input i gets a gradient                                 */
    int64_t p[6];                                    /* what `call` wants to know of the shape                          */
    ops_work work[PASSES];
    char shape[48];
} ops_case;

struct ops_row {
    const char *op, *name;                           /* of the registry; in the table                                  */
    const char *inputs;                              /* a letter each (ops_rows.c); NULL: `make` does it                */
    void (*make)(ops_case *c, int size);             /* after the letters; also what they do not say                    */
    td_tensor *(*call)(ops_case *c, td_tensor **second);   /* *second: another result that the gradient comes from, or NULL */
    unsigned reads;                                  /* what the gradient reads beside the result's: bits of inputs, OPS_OUT */
    bool no_gradient, view;                          /* view: nothing is moved, only the time of the call is shown      */
    bool counted;                                    /* `make` has said what there is to do: bytes are not counted      */
    double calls[PASSES][ROUTINES];                  /* per element of the first input                                 */
};
extern const ops_row ops_rows[], ops_rows_products[];       /* end with op NULL                                          */

/* ---- ops.c: inputs --------------------------------------------------------------------------------------------------------- */
typedef enum { NORMAL, POSITIVE, UNIT } ops_values;         /* about N(0,1); in [1/2, 2); small, for weights             */
void ops_input(ops_case *c, td_shape shape, ops_values values, bool leaf);
void ops_indices(ops_case *c, td_shape shape, int64_t below);            /* i64, not a leaf                            */
void ops_mask(ops_case *c, td_shape shape);

/* ---- ops_limits.c: seconds of one pass of the least work, on the calling thread's team ------------------------------------- */
void   ops_limits_open(size_t bytes);                       /* room for the largest row                                  */
double ops_limit_seconds(const ops_work *work, int repeats);     /* of one of `repeats` in a row                          */
double ops_fma_rate(double seconds);                        /* flop/s of the widest FMA, all threads                     */
double ops_bandwidth(double read, double written, int repeats);  /* bytes/s                                               */

/* ---- ops_rows.c ------------------------------------------------------------------------------------------------------------ */
void   ops_letters(ops_case *c, const char *letters, int size);   /* inputs by letters                                    */
#endif
