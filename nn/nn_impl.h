/* nn/nn_impl.h: modules from inside. Internal.
 *
 *   module.c    the tree: making, names, adopting, freeing     lists.c   what is read off it: lists, paths, train, conversion
 *   forward.c   the inner scope of a forward                  summary.c the table
 *   init.c      initialisers                                  linear.c conv2d.c batch_norm.c pool2d.c dropout.c embedding.c sequential.c: a layer
 *                                                             each; layer_norm.c: layer, RMS and group norm; rnn.c: LSTM, GRU; rnn_cell.c: one step
 *                                                             activation.c: the layers without a state, flatten among them
 */
#ifndef TD_NN_IMPL_H
#define TD_NN_IMPL_H
#include <autograd_impl.h>
#include <tandem/nn.h>

/* The most that a user's struct may hold: the poisoned module is as large, because it stands in for any of them. */
enum { TD__MODULE_ROOM = 64 * 1024 };

typedef enum { TD__PARAMETER, TD__BUFFER, TD__CHILD } td__entry_kind;

/* One named thing in a module. A tensor's `owner` is the entry that made it a parameter or buffer; entries that share it (tied) hang on
 * that one's `tie` chain, and the next of them becomes the owner when it goes. */
typedef struct td__entry {
    td__entry_kind kind;
    char      *name;
    td_module *module;                         /* whose entry                                                               */
    td_tensor *tensor;                         /* one reference                                                             */
    td_module *child;
    char      *path;                           /* from the root, "0.weight"; made when asked, forgotten when the tree changes  */
    struct td__entry *tie;
} td__entry;

typedef struct td__tree {
    td_module  *parent;
    td__entry  *place;                         /* the parent's entry for this module; NULL: a root                           */
    td__entry **entry; int n, room;            /* in order of making                                                        */
    bool        eval;
    char       *label;                         /* for messages: "module 0 (linear)"                                         */
    bool        listed;                        /* the two lists below are up to date                                        */
    td_tensor **list[2]; size_t listed_n[2];   /* parameters, buffers                                                       */
    td_module  *next, *prev;                   /* roots                                                                     */
} td__tree;

td_module *td__module_poison(void);
static inline td__tree *td__tree_of(const td_module *m) { return m->tree; }       /* NULL: poisoned                            */
int        td__module_check(const char *who, const td_module *m);                 /* 0, or negative: NULL (td__fail) or poisoned  */
const char *td__entry_path(td__entry *e);      /* "" when memory has gone                                                   */
const char *td__module_label(td_module *m);
void       td__tree_changed(td_module *m);     /* lists of m and all above                                                  */
void       td__nn_free_all(void);              /* all modules, and the initialisers' stream begins anew: td_finish            */

void       td__init_restart(void);             /* the stream of the initialisers counts from 0 again                         */

/* batch_norm.c: who computes it while training instead of td_batch_norm (ddp's synchronised one). Diverts m: 1; m is no batch norm: 0. */
typedef struct { td_tensor *x, *weight, *bias, *running_mean, *running_var; double momentum, eps; } td__norm_call;
int        td__batch_norm_divert(td_module *m, td_tensor *(*forward)(const td__norm_call *n, void *with), void *with);

/* for layers: a new parameter or buffer; PyTorch's default initialisation, uniform in +-1/sqrt(fan_in) */
td_tensor *td__layer_parameter(td_module *m, const char *name, td_shape shape, int64_t fan_in);
td_module *td__layer_done(td_module *m);       /* m, or the poisoned module (m freed) when something has failed               */

#endif
