/* tandem/data.h: datasets and the loader.
 *
 * Global batch k of an epoch is rows k*batch*parts … of the epoch's order; part r takes the r-th share of it. Every part gets
 * the same number of batches, no row twice, no row dropped (unless drop_last): the last global batch is cut as evenly as
 * possible, so that a part's share may be a row shorter, or empty (0 rows). So N parts of batch B see, step by step, the
 * samples of one part with batch N*B.
 */
#ifndef TANDEM_DATA_H
#define TANDEM_DATA_H
#include <tandem/tensor.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_dataset td_dataset;
typedef struct td_loader td_loader;

typedef struct { td_shape shape; td_dtype dtype; } td_field;              /* of one sample                            */
typedef struct {
    int64_t rows;
    const td_field *field; size_t n_fields;                               /* copied; 1 to 8                           */
    int  (*read)(void *user, int64_t row, void *const *into);             /* one sample into n_fields places; called from
                                                                             loader threads at once; 0 or a negative code */
    void (*close)(void *user);                                            /* may be NULL                              */
    uint64_t reserved[4];
} td_dataset_source;
TD_API td_dataset *td_dataset_new(const td_dataset_source *source, void *user);
/* IDX files (LeCun's MNIST format), plain or gzip: PREFIX-images-idx3-ubyte[.gz] and PREFIX-labels-idx1-ubyte[.gz], as in
 * ".../train". Field 0: f32 (1,H,W), bytes/255; field 1: i64 (). Held in memory as bytes. */
TD_API td_dataset *td_dataset_idx(const char *path_prefix);
typedef enum {
    TD_TOKENS_AUTO,        /* by the name: ".bin" is TD_TOKENS_U16, everything else TD_TOKENS_BYTES                          */
    TD_TOKENS_BYTES,       /* every byte is a token, 0 to 255                                                                */
    TD_TOKENS_U16,         /* little-endian, without a header (nanoGPT); one with llm.c's header is taken at its word        */
    TD_TOKENS_U32,         /* little-endian, without a header, or with llm.c's                                               */
} td_tokens_kind;
typedef struct {
    int64_t context;       /* default 1024: T, tokens per row                                                                */
    int64_t stride;        /* default: context; tokens from one row's first to the next's                                    */
    double  from, to;      /* default 0 and 1 (to 0 means 1): the part of all tokens that is used, as fractions              */
    int64_t vocab;         /* default 0: ids are not compared; else an id of vocab or more is an error when its row is read   */
    td_tokens_kind kind;   /* default TD_TOKENS_AUTO                                                                         */
    uint64_t reserved[4];
} td_tokens_opts;
/* Token ids of one or more files, n >= 1 paths or patterns as in "data/train_*.bin" (glob(7), in the alphabet's order): one stream in the
 * order given, memory-mapped. Row i is the window that begins at token i*stride of the part: field 0, x i64 (T): its tokens;
 * field 1, y i64 (T): the tokens after each of them. What is left over at the end is not used; windows of one part never reach into
 * another. llm.c's header: 256 little-endian i32, of which the first three are 20240520, 1 and the number of u16 ids that follow, or
 * 20240801, 7 and the number of u32 ids. Fewer than T+1 tokens, or a size that breaks the format: one sentence. The maps are the files': one that
 * another program shortens meanwhile ends this process (SIGBUS). opts NULL: defaults. */
TD_API td_dataset *td_dataset_tokens(const char *const *paths, size_t n, const td_tokens_opts *opts);
TD_API int64_t     td_dataset_rows(const td_dataset *data);
TD_API void        td_dataset_free(td_dataset *data);                     /* only one that no loader has taken        */

typedef struct {
    td_tensor *x, *y;                                                     /* fields 0 and 1 (y NULL when there is one)  */
    td_tensor *const *field; size_t n_fields;                             /* (rows, …) each                           */
    td_tensor *sample;                                                    /* i64 (rows): each row's number in the data set */
    int64_t rows;                                                         /* may be 0                                 */
    uint64_t reserved[4];
} td_batch;                                                               /* the loader's until its next              */

/* What the loader's threads do to field 0, f32 (C,H,W) pictures, of every sample they read, in this order: random crop, random flip,
 * normalisation. The random numbers are Philox of (seed, epoch, the sample's number) alone: the same whatever the number of parts and
 * threads and the batch size, new in every epoch. */
typedef struct {
    int  crop_padding;              /* default 0: no crop. p > 0: the picture with p rows and columns of zeros on each side, of
                                       which a window of its own size is kept, each of the (2p+1)^2 places as likely     */
    bool flip;                      /* default false; true: mirrored left to right with probability 1/2                 */
    const double *mean, *std;       /* default NULL: 0 and 1. C numbers each, copied: (x - mean[c]) / std[c], std above 0  */
    uint64_t reserved[4];
} td_augment;

typedef struct {
    int64_t  batch;                 /* rows per part; default 32                                                     */
    bool     shuffle;               /* default false; the order is a function of (seed, epoch) alone                 */
    bool     drop_last;             /* default false; drops the last global batch when it is not full                */
    uint64_t seed;                  /* default: td_seed                                                              */
    int      threads;               /* prefetching threads; default 1                                                */
    int      queue;                 /* batches read ahead; default 4                                                 */
    int      part, parts;           /* default (parts 0): rank and size of the world                                 */
    td_augment augment;             /* default: samples as they are read                                             */
    uint64_t reserved[8];
} td_loader_opts;
/* Batches lie on the default device. Those of a GPU are read into pinned host memory and copied on a stream of the loader's own while
 * earlier ones are computed with; td_loader_next and the computation wait for neither but where data comes too slowly. Each of the
 * queue + 1 batches has its place on the device. */
TD_API td_loader *td_loader_new(td_dataset *takes, const td_loader_opts *opts);
TD_API void       td_loader_free(td_loader *loader);                      /* NULL is fine                             */
/* The next batch, and its sample numbers for random operations (td_samples). false at the end of the epoch (the next call
 * begins the next epoch) or on an error. */
TD_API bool       td_loader_next(td_loader *loader, td_batch *batch);
TD_API int64_t    td_loader_batches(const td_loader *loader);             /* per epoch, the same on every part        */
TD_API int64_t    td_loader_epoch(const td_loader *loader);
TD_API void       td_loader_set_epoch(td_loader *loader, int64_t epoch);  /* the next batch is this epoch's first     */
TD_API int64_t    td_loader_position(const td_loader *loader);            /* batches handed out of this epoch, 0 … td_loader_batches */
/* The next batch is number `batch` of that epoch, from 0, bit for bit as if all before it had been read; td_loader_batches: the next call
 * finds the epoch's end. So td_loader_seek(l, td_loader_epoch(k), td_loader_position(k)) goes on where another loader k of the same data and
 * options stands. Ends the batch in hand. 0 or a negative code. */
TD_API int        td_loader_seek(td_loader *loader, int64_t epoch, int64_t batch);
TD_API double     td_loader_waited_ms(const td_loader *loader);           /* time td_loader_next waited since the last call of this */

#ifdef __cplusplus
}
#endif
#endif
