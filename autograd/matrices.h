/* autograd/matrices.h: tensors as matrices for BLAS. Internal to ops_matmul.c, ops_linear.c.
 *
 * A tensor's last two dimensions are a matrix that BLAS can read as it is, plainly or transposed, where one of them is contiguous:
 * transposed views cost nothing. Anything else is copied first.
 */
#ifndef TD_MATRICES_H
#define TD_MATRICES_H
#include "ops_shared.h"

/* One operand: matrices (rows,cols) over batch dimensions. */
typedef struct {
    td_tensor *x;                                              /* holds the memory; referenced                            */
    int64_t rows, cols, row_stride, col_stride;
    int batch_dims;
    int64_t batch[TD_MAX_DIMS], batch_stride[TD_MAX_DIMS];
    bool trans;                                                /* for gemm, with ld                                       */
    int64_t ld;
} td__mat;

/* x as matrices; a vector becomes a column or a row. 0, or an error; m->x is then to be unrefed either way. */
int td__mat_open(td__mat *m, td_tensor *x, bool column);
/* x (…,I) as one matrix (rows,I) */
int td__mat_open_rows(td__mat *m, td_tensor *x);
/* The result or a destination: contiguous, seen as (…,rows,cols) with the batch dimensions of `like`. */
void td__mat_open_out(td__mat *m, td_tensor *x, int64_t rows, int64_t cols, int batch_dims, const int64_t *batch);
td__mat td__mat_flipped(const td__mat *m);
/* Where all matrices lie evenly below each other they are one tall matrix. */
bool td__mat_make_tall(td__mat *m);
int64_t td__mat_count(const td__mat *m);
/* out = or += a * b over the batch dimensions that a, b and out broadcast to; out's own broadcast dimensions are summed. 0, or after td__fail. */
int td__mat_multiply(const td__mat *a, const td__mat *b, const td__mat *out, int dims, const int64_t *batch, bool add);
#endif
