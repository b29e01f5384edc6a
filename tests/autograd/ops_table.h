/* tests/autograd/ops_table.h: one table of operations, two test modes.
 *
 * A row names an operation record, makes inputs of a certain shape, calls the public function and has a plain double-precision reference.
 * Mode "result": in each dtype of the row, on the instruction set that TANDEM_ISA names, the result is compared with the reference. Mode
 * "gradient": the inputs of the mask `grad` become f64 leaves and td_gradcheck compares with central differences.
 * test_ops_registry walks td_op_registry() and fails where an operation has no row, or neither a gradient row nor `no_gradient`.
 *
 * Inputs are made contiguous; rows about strided inputs take their view (td_transpose, td_narrow, td_expand) in `apply`, so that
 * the gradient flows through it too. A family's rows are an array ended by a row whose op is NULL, listed in ops_table.c.
 */
#ifndef TD_TEST_OPS_TABLE_H
#define TD_TEST_OPS_TABLE_H
#include <autograd_impl.h>
#include <tandem.h>

/* A dense array of doubles: what references read and write. Integers and bools are converted. */
typedef struct { td_shape shape; int64_t n; double *v; } ops_array;

#define OPS_MAX 8
enum {
    OPS_F = 1u << TD_F32 | 1u << TD_F64,                       /* "float" operations                                  */
    OPS_ARITH = OPS_F | 1u << TD_I64 | 1u << TD_I32,           /* "arith" operations                                  */
};

typedef struct ops_row {
    const td_op *op;                                           /* NULL ends a table                                   */
    const char *name;                                          /* "add: row broadcast"                                */
    unsigned dtypes;                                           /* mask of 1u << dtype                                 */
    /* Fills in[] with fixed values (ops_fill, ops_fill_distinct …), in dtype t; returns how many. In the caller's scope. */
    size_t (*inputs)(const struct ops_row *row, td_dtype t, td_tensor **in);
    td_tensor *(*apply)(td_tensor *const *in, size_t n, void *row);   /* user is the row (const struct ops_row *)     */
    /* out: give it its shape with ops_out, then fill out->v. */
    void (*reference)(const struct ops_row *row, const ops_array *in, size_t n, ops_array *out);
    /* |got - ref| <= eps * (abs + rel*|ref|), eps 2^-23 or 2^-52 (half for neither: the row says how many roundings). Integers: exact. */
    double abs, rel;
    unsigned grad;                                             /* mask of inputs to differentiate; 0: not in mode 2   */
    bool no_gradient;                                          /* the operation has none by its nature (eq, argmax)   */
    int p[12];                                                 /* parameters of the row, for the three functions      */
    td_gradcheck_opts check;                                   /* zero: td_gradcheck's defaults                       */
} ops_row;

extern const ops_row ops_rows_arith[], ops_rows_reduce[], ops_rows_view[], ops_rows_matmul[], ops_rows_activation[], ops_rows_loss[];
extern const ops_row ops_rows_attention[];                     /* attention, rotary, swiglu                          */
extern const ops_row ops_rows_pointwise[], ops_rows_choose[], ops_rows_nll[];
extern const ops_row ops_rows_rnn[];                           /* lstm_cell, gru_cell                                 */
extern const ops_row ops_rows_images[];                        /* conv2d, pools, batch_norm, dropout                  */
extern const ops_row ops_rows_norms[], ops_rows_index[];        /* layer, RMS, group norm; embedding, index_select, gather, concat, pad */

/* Helpers for rows. Values are multiples of 1/64 in about [-2, 2] from Philox (seed), integers in [-9, 9]: exact in every dtype. */
td_tensor *ops_fill(td_shape shape, td_dtype t, uint64_t seed);
td_tensor *ops_fill_positive(td_shape shape, td_dtype t, uint64_t seed);   /* in [1/4, 2], integers in [1, 9]                */
td_tensor *ops_fill_distinct(td_shape shape, td_dtype t, uint64_t seed);   /* a shuffled ramp: no two equal, none within 1/64 of 0 */
void    ops_out(ops_array *out, td_shape shape);                           /* allocates, zeroes                              */
void    ops_array_of(td_tensor *x, ops_array *out);                         /* allocates; the values of any dtype          */
int64_t ops_count(td_shape shape);
/* Index of the element of `a` (broadcast to `to`) at flat index i of `to`. */
int64_t ops_broadcast_index(td_shape a, td_shape to, int64_t i);
td_shape ops_broadcast(td_shape a, td_shape b);

/* The runner. Each returns 0 or prints what differs (row, dtype, element, got, expected) and returns the number of failures. */
int ops_check_result(const ops_row *row, td_dtype t);
int ops_check_gradient(const ops_row *row);
/* The gradients on the default device against those on the CPU (which ops_check_gradient holds to finite differences), to 1e-12 of the largest:
 * two backwards in place of two forwards for each element. */
int ops_check_gradient_beside_cpu(const ops_row *row);
const ops_row *const *ops_tables(void);                                    /* all families, ended by NULL                    */

#endif
