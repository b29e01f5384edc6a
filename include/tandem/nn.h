/* tandem/nn.h: modules: a named tree of parameters, buffers and children.
 *
 * A user's own module is a struct whose first member is td_module, with any typed forward function of its own:
 *     typedef struct { td_module base; td_module *in, *out; } block;
 *     static td_tensor *block_forward(td_module *m, td_tensor *x) { block *b = (block *)m; … }
 *     static const td_module_type block_type = { .kind = "block", .size = sizeof(block), .forward = block_forward };
 * td_module_new(&block_type) gives a zeroed struct; td_module_parameter, _buffer and _child fill the tree. Modules own their
 * parameters, parents own their children; the root is yours to td_module_free (td_finish frees what you left).
 */
#ifndef TANDEM_NN_H
#define TANDEM_NN_H
#include <tandem/autograd.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_module td_module;
typedef struct {
    const char *kind;                                     /* "linear"; the summary shows it                            */
    size_t size;                                          /* of the whole struct; at most 64 KiB                       */
    td_tensor *(*forward)(td_module *m, td_tensor *x);    /* NULL: this module has only typed functions                */
    void (*destroy)(td_module *m);                        /* what the struct owns besides its tensors; may be NULL      */
    void (*describe)(const td_module *m, char *into, size_t size);  /* "in=784, out=512" for the summary; may be NULL   */
    uint64_t reserved[2];
} td_module_type;
struct td_module { const td_module_type *type; void *tree; };   /* first member of a user's own struct               */

TD_API td_module *td_module_new(const td_module_type *type);
TD_API void       td_module_free(td_module *m);           /* a root; NULL is fine                                      */
/* value is taken (from its scope, or from your td_keep). One that has an owner already is tied: one tensor, one gradient, listed
 * once. A parameter becomes a leaf that needs gradients. Where adopting fails nothing is taken. Names: letters, digits, '_',
 * unique in the module. Returns the tensor to use from now on. */
TD_API td_tensor *td_module_parameter(td_module *m, const char *name, td_tensor *value);
TD_API td_tensor *td_module_buffer(td_module *m, const char *name, td_tensor *value);   /* state without gradients: running means */
TD_API td_module *td_module_child(td_module *m, const char *name, td_module *takes);
TD_API td_tensor *td_forward(td_module *m, td_tensor *x); /* runs type->forward in an inner scope, escapes its result  */
/* The same in a td_checkpoint: what m computes inside is computed again in backward instead of kept. m must live until then. */
TD_API td_tensor *td_forward_checkpointed(td_module *m, td_tensor *x);
TD_API td_scope   td_module_scope_begin(td_module *m);
/* the same inner scope for one's own typed forward functions; td_escape the results */
#define TD_MODULE_SCOPE(m)                                                                                   \
    __attribute__((cleanup(td_scope_end), unused)) td_scope TD_PASTE(td_scope_, __COUNTER__) =               \
        td_module_scope_begin((td_module *)(m))

TD_API td_tensors  td_parameters(td_module *m);           /* all below m, in order of making, tied ones once; the module's */
TD_API td_tensors  td_buffers(td_module *m);
TD_API const char *td_parameter_name(const td_tensor *parameter);  /* path in the tree of its first owner: "0.weight"; "" for none */
TD_API td_tensor  *td_parameter_get(td_module *m, const char *path);  /* a parameter or buffer by name; poisoned and an error if absent */
TD_API td_module  *td_module_get(td_module *m, const char *path);     /* a descendant; NULL when there is none          */
TD_API void        td_train(td_module *m, bool on);       /* the whole tree; true at first                             */
TD_API bool        td_is_training(const td_module *m);
TD_API int         td_module_to(td_module *m, td_dtype dtype);        /* converts floating parameters and buffers; before any
                                                                         optimizer or ddp                              */
TD_API void        td_summary(const td_module *m);        /* a table to stdout: name, kind, shapes, parameters, bytes   */
TD_API size_t      td_summary_format(const td_module *m, char *into, size_t size);   /* like snprintf                  */

/* ---- layers. Parameters are f32, named and initialised as in PyTorch: weight and bias uniform in +-1/sqrt(fan_in) -------- */
typedef struct { bool no_bias; uint64_t reserved[4]; } td_nn_linear_opts;   /* default false: with bias                        */
TD_API td_module *td_nn_linear(int64_t in, int64_t out, const td_nn_linear_opts *opts);     /* weight (out,in) bias (out) */
typedef struct {
    int stride, padding;          /* default 1 and 0                                                                    */
    bool no_bias;                 /* default false: with bias                                                           */
    int dilation, groups;         /* default 1 and 1; groups divides in and out                                         */
    uint64_t reserved[4];
} td_nn_conv2d_opts;
/* weight (out,in/groups,kernel,kernel) bias (out); fan_in = in/groups * kernel^2 */
TD_API td_module *td_nn_conv2d(int64_t in, int64_t out, int kernel, const td_nn_conv2d_opts *opts);
typedef struct {
    int stride, padding, output_padding;   /* default 1, 0 and 0                                                       */
    bool no_bias;                 /* default false: with bias                                                           */
    int dilation, groups;         /* default 1 and 1; groups divides in and out                                         */
    uint64_t reserved[4];
} td_nn_conv_transpose2d_opts;
/* weight (in,out/groups,kernel,kernel) bias (out); fan_in = out/groups * kernel^2, as PyTorch has it */
TD_API td_module *td_nn_conv_transpose2d(int64_t in, int64_t out, int kernel, const td_nn_conv_transpose2d_opts *opts);
typedef struct { double momentum, eps; bool no_affine; uint64_t reserved[4]; } td_nn_batch_norm_opts;   /* defaults 0.1, 1e-5, false */
TD_API td_module *td_nn_batch_norm(int64_t channels, const td_nn_batch_norm_opts *opts);    /* (N,C,…)                  */
/* relu(td_forward(m, x) + z) of such a module, z of x's shape or NULL, in fewer passes over a GPU's memory (td_batch_norm_relu); on the
 * CPU the three apart, with their bits. */
TD_API td_tensor *td_batch_norm_relu_forward(td_module *m, td_tensor *x, td_tensor *z);
typedef struct {
    double eps;           /* default 1e-5                                                                               */
    bool no_affine;       /* default false: weight (ones at first) and bias (zeros) of the shape                        */
    bool no_bias;         /* default false: with bias                                                                   */
    bool low;             /* default false: in f32 inside TD_AUTOCAST; true: in its dtype, for results that only products read */
    uint64_t reserved[4];
} td_nn_layer_norm_opts;
TD_API td_module *td_nn_layer_norm(td_shape shape, const td_nn_layer_norm_opts *opts);      /* (…,shape): its dimensions, at least one */
typedef struct {
    double eps;           /* default: the machine epsilon of x's dtype (PyTorch)                                       */
    bool no_affine;       /* default false: weight (width), ones at first                                               */
    bool low;             /* default false; as in td_nn_layer_norm_opts                                                 */
    uint64_t reserved[4];
} td_nn_rms_norm_opts;
TD_API td_module *td_nn_rms_norm(int64_t width, const td_nn_rms_norm_opts *opts);           /* (…,width)                */
typedef struct {
    double eps;           /* default 1e-5                                                                               */
    bool no_affine;       /* default false: weight (ones at first) and bias (zeros), per channel                        */
    uint64_t reserved[4];
} td_nn_group_norm_opts;
TD_API td_module *td_nn_group_norm(int64_t groups, int64_t channels, const td_nn_group_norm_opts *opts);    /* (N,C,…)   */
/* weight (count,width) from N(0,1), the padding row zero; ids in [0,count), of any shape, i64 or i32 -> (…,width) */
TD_API td_module *td_nn_embedding(int64_t count, int64_t width, const td_embedding_opts *opts);
/* ---- recurrent layers: parameters weight_ih_l0 (G*H,I) weight_hh_l0 (G*H,H) bias_ih_l0 bias_hh_l0 (G*H), likewise _l1 … and _l0_reverse …; G is 4
 * for the LSTM (gates i f g o), 3 for the GRU (r z n); all uniform in +-1/sqrt(hidden), as PyTorch. Layer k > 0 has I = directions * hidden. The
 * products of the input are one product for all time steps. */
typedef struct {
    int    layers;        /* default 1                                                                                  */
    bool   bidirectional; /* default false; true: a second direction; results have 2*hidden features, forward ones first  */
    double dropout;       /* default 0; in [0,1): on the results of every layer but the last, while training            */
    bool   batch_first;   /* default false: x is (T,N,in); true: (N,T,in), and so is the result                         */
    bool   no_bias;       /* default false: with bias                                                                   */
    uint64_t reserved[4];
} td_nn_rnn_opts;
TD_API td_module *td_nn_lstm(int64_t in, int64_t hidden, const td_nn_rnn_opts *opts);
TD_API td_module *td_nn_gru(int64_t in, int64_t hidden, const td_nn_rnn_opts *opts);
/* x (T,N,in) -> (T,N,directions*hidden), T >= 1: the last layer's states. h, c: in: the first state (layers*directions,N,hidden), NULL or a NULL tensor:
 * zeros; out: the last state, part of the graph: td_detach it before the next window of truncated back-propagation through time. The results
 * belong to the scope of the caller. td_forward begins with zeros and gives the result alone. */
TD_API td_tensor *td_lstm_forward(td_module *m, td_tensor *x, td_tensor **h, td_tensor **c);
TD_API td_tensor *td_gru_forward(td_module *m, td_tensor *x, td_tensor **h);
/* One time step as a module of its own: weight_ih (G*H,in), weight_hh (G*H,H), bias_ih, bias_hh (G*H). x (N,in); h, c (N,hidden) as above;
 * the result is h'. */
typedef struct { bool no_bias; uint64_t reserved[4]; } td_nn_rnn_cell_opts;   /* default false: with bias                      */
TD_API td_module *td_nn_lstm_cell(int64_t in, int64_t hidden, const td_nn_rnn_cell_opts *opts);
TD_API td_module *td_nn_gru_cell(int64_t in, int64_t hidden, const td_nn_rnn_cell_opts *opts);
TD_API td_tensor *td_lstm_cell_forward(td_module *m, td_tensor *x, td_tensor **h, td_tensor **c);
TD_API td_tensor *td_gru_cell_forward(td_module *m, td_tensor *x, td_tensor **h);
TD_API td_module *td_nn_relu(void);
TD_API td_module *td_nn_gelu(void);
TD_API td_module *td_nn_silu(void);
TD_API td_module *td_nn_sigmoid(void);
TD_API td_module *td_nn_tanh(void);
TD_API td_module *td_nn_max_pool2d(int window, const td_pool2d_opts *opts);
TD_API td_module *td_nn_avg_pool2d(int window, const td_pool2d_opts *opts);
TD_API td_module *td_nn_adaptive_avg_pool2d(int64_t out_h, int64_t out_w);
TD_API td_module *td_nn_adaptive_max_pool2d(int64_t out_h, int64_t out_w);
TD_API td_module *td_nn_dropout(double p);
TD_API td_module *td_nn_flatten(void);                    /* (N,…) -> (N, rest)                                        */
TD_API td_module *td_nn_sequential_n(td_module *const *layers, size_t n);   /* takes the layers, named "0", "1", …       */
#ifndef __cplusplus
#define td_nn_sequential(...)                                                                                \
    td_nn_sequential_n((td_module *const[]){ __VA_ARGS__ },                                                  \
                       sizeof((td_module *const[]){ __VA_ARGS__ }) / sizeof(td_module *))
#endif

/* ---- initialisers, in place, PyTorch's formulas. Numbers: Philox of (td_seed, stream), where stream counts the parameters
 * initialised in this process (from 2^63, from anew when td_seed sets another seed, and after td_finish): every rank draws the same.
 * fan_in and fan_out as PyTorch computes them. ------------------------------------------------------------------------------- */
typedef struct {
    double a;             /* leaky slope for Kaiming, default 0; gain for Xavier, default 1                             */
    bool fan_out;         /* Kaiming: use fan_out (PyTorch: mode); default false                                        */
    uint64_t reserved[4];
} td_nn_init_opts;
TD_API int td_nn_init_uniform(td_tensor *x, double low, double high);
TD_API int td_nn_init_normal(td_tensor *x, double mean, double std);
TD_API int td_nn_init_kaiming_uniform(td_tensor *x, const td_nn_init_opts *opts);   /* bound sqrt(6/((1+a^2) fan)), He et al. 2015 */
TD_API int td_nn_init_kaiming_normal(td_tensor *x, const td_nn_init_opts *opts);
/* bound gain*sqrt(6/(fan_in+fan_out)), Glorot and Bengio 2010 */
TD_API int td_nn_init_xavier_uniform(td_tensor *x, const td_nn_init_opts *opts);
TD_API int td_nn_init_xavier_normal(td_tensor *x, const td_nn_init_opts *opts);

#ifdef __cplusplus
}
#endif
#endif
