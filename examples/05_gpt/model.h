/* model.h: GPT-2 (Radford et al. 2019): a decoder of pre-norm blocks with learned positions, the tanh form of gelu, and a head
 * tied to the token table. Parameters have Hugging Face's names and shapes (wte.weight, h.0.attn.c_attn.weight, …), so that its
 * files load as they are; matrices lie as (in, out), as that model's Conv1D has them. Attention's weights are not dropped out.
 *
 * model.c: the network and its gradient's way. cache.c: the same function one token at a time. weights.c: files.
 */
#ifndef GPT_MODEL_H
#define GPT_MODEL_H
#include <tandem.h>

enum { GPT_MAX_LAYERS = 256 };

typedef struct {
    int64_t layers;          /* default 12                                                                              */
    int64_t heads;           /* default: width/64, at least 1; divides width                                            */
    int64_t width;           /* default 768                                                                             */
    int64_t context;         /* default 1024: the longest sequence                                                      */
    int64_t vocab;           /* default 50257                                                                           */
    double  dropout;         /* default 0: after the embedding, and at the end of each branch of a block                 */
    bool    checkpointing;   /* default false; true: blocks are computed twice instead of keeping what is in them        */
} gpt_opts;
/* Fills in the shape of a known size: "124M", "355M", "774M", "1558M" (GPT-2's), "small" (4 layers, 256 wide, context 256, bytes), "tiny"
 * (2 layers, 64 wide, context 64, bytes). false: there is no such name. */
bool gpt_preset(const char *name, gpt_opts *opts);

typedef struct { td_module base; td_tensor *weight, *bias; } gpt_projection;       /* weight (in,out)  bias (out)          */
typedef struct {
    td_module base;
    int64_t heads;
    double  dropout;
    td_module *ln_1, *c_attn, *attn_c_proj, *ln_2, *c_fc, *mlp_c_proj;
} gpt_block;
typedef struct {
    td_module base;
    gpt_opts opts;                             /* every default filled in                                               */
    td_module *wte, *wpe, *ln_f;
    gpt_block *block[GPT_MAX_LAYERS];
} gpt;

/* f32, drawn from td_seed: N(0, 0.02), the last matrix of each branch N(0, 0.02/sqrt(2*layers)), biases 0. NULL after a line about what
 * does not fit. The module is &net->base. */
gpt *gpt_new(const gpt_opts *opts);
td_tensor *gpt_mlp(const gpt_block *b, td_tensor *x);          /* a block's second half, between norm and residual        */
td_tensor *gpt_logits(gpt *net, td_tensor *ids);              /* i64 (N,T), T up to context -> (N,T,vocab)                */
td_tensor *gpt_loss(gpt *net, td_tensor *x, td_tensor *y);    /* x, y (N,T) -> (): mean cross entropy; divisor: N*T       */
int64_t    gpt_parameters(gpt *net);                          /* their number                                            */
double     gpt_flops_per_token(gpt *net, int64_t t);          /* forward and backward of rows of t tokens: 6 per matrix weight, and the
                                                                 half of attention that a causal mask leaves            */

/* ---- weights.c ------------------------------------------------------------------------------------------------------------ */
/* A safetensors file with Hugging Face's names; the number of heads, which no shape tells, in its metadata ("n_head"). */
int gpt_save(gpt *net, const char *path);
/* From such a file or one of Hugging Face's: GPT2Model's names or GPT2LMHeadModel's ("transformer." in front); masks that old files hold are
 * passed over; an lm_head.weight must be wte.weight. 0, or a negative code after one line or a pending error. */
int gpt_load(gpt *net, const char *path);
/* The shape of a file's model; heads as its metadata says, else left alone. 0 or a negative code, as above. */
int gpt_shape_of(const char *path, gpt_opts *opts);

/* ---- cache.c --------------------------------------------------------------------------------------------------------------- */
/* Keys and values of the tokens so far, so that the next one costs one token. */
typedef struct { int64_t rows, used, room; td_tensor *k[GPT_MAX_LAYERS], *v[GPT_MAX_LAYERS]; } gpt_cache;
gpt_cache *gpt_cache_new(gpt *net, int64_t rows);             /* room for context tokens, in the dtype of the weights    */
void       gpt_cache_free(gpt_cache *cache);
/* ids (rows,T): the next T tokens; used + T up to context -> (rows,vocab): logits after the last of them. No gradients. */
td_tensor *gpt_next(gpt *net, gpt_cache *cache, td_tensor *ids);
typedef struct {
    double  temperature;     /* default 1; below 0: the most likely token                                               */
    int64_t top_k;           /* default 0: all tokens; else only the k most likely, and those as likely as the k-th      */
} gpt_sampling;
/* A token drawn from one row of n logits with u in [0,1). */
int64_t gpt_sample(const double *logits, int64_t n, const gpt_sampling *how, double u);
/* Goes on after `prompt` (n >= 1 ids) with `count` tokens into `out`; token i uses the random number (seed, i). When the context is full the
 * later half of it is read again. 0 or a negative code. */
int gpt_generate(gpt *net, const int64_t *prompt, int64_t n, int64_t *out, int64_t count, const gpt_sampling *how, uint64_t seed);
#endif
