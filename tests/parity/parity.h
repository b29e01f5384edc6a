/* tests/parity/parity.h: the same models, weights, batches and optimizers here and in PyTorch (golden.py), compared number by number.
 *
 * models.c has the models and their batches, run.c the experiment, parity.c the command line and the comparison. Weights and batches are
 * uniform Philox numbers times powers of two, so that both programs hold the same bits in f32 and in f64.
 */
#ifndef PARITY_H
#define PARITY_H
#include <tandem.h>

enum { STEPS = 20, SAMPLES = 64, MAX_ENTRIES = 2048 };

typedef struct {
    const char *name;
    td_module *(*build)(void);
    td_tensor *(*logits)(td_module *net, int batch, td_dtype dtype);
    td_tensor *(*loss)(td_tensor *logits, int batch);
    int depth;          /* products, norms and attentions one after the other on the longest way from input to loss           */
    int sum;            /* the most terms in one of their sums                                                                */
    double sgd, adamw, lars;   /* factors of these rules' learning rates; 0: 1                                                */
    double kinks;       /* f32: tolerance after 20 steps where some relu's argument has another sign than in f64 (parity.c)    */
} parity_model;
extern const parity_model parity_models[];     /* ended by a name of NULL */

/* ---- numbers ---- */
uint64_t   parity_stream(const char *text);                                           /* FNV-1a, 64 bits                      */
td_tensor *parity_uniform(td_shape shape, const char *stream, double half_width, td_dtype dtype);   /* in [-h,h), h a power of two */
td_tensor *parity_ids(td_shape shape, const char *stream, int64_t count);             /* floor(uniform * count), i64          */

/* ---- the experiment: one digest per tensor, "logits", "loss", "grad/NAME", "buffer/NAME", "sgd/NAME", "adamw/NAME", ... ---- */
/* value: how many elements there are, norm, sum, up to 64 elements; n values in all */
typedef struct { char name[160]; int n; double value[SAMPLES + 3]; } parity_entry;
typedef struct { parity_entry *entry; int n; } parity_result;
int  parity_run(const parity_model *m, td_dtype dtype, parity_result *out);          /* 0 or a negative code                 */
#endif
