/* data/data_impl.h: datasets and loaders from inside. Internal.
 *
 *   dataset.c   the record and its life; the list of live ones
 *   bytes.c     one file as a stream of bytes, plain or gzip, that knows its offsets
 *   idx.c       the IDX format on top of it
 *   tokens.c    token ids of mapped files, in windows
 *   sampler.c   pure functions: the order of an epoch, and which part of it is whose
 *   augment.c   random crop and flip, normalisation of one picture: pure functions of (seed, epoch, sample)
 *   prefetch.c  the threads that read ahead, and the bounded queue
 *   loader.c    the user's end of it, and a loader's life
 */
#ifndef TD_DATA_IMPL_H
#define TD_DATA_IMPL_H
#include <tensor_impl.h>
#include <tandem/data.h>

/* Told the sample numbers of every batch that a loader hands out (the calling thread's), and NULL when that batch is over. data/ does not
 * know autograd/, which holds a thread's current sample numbers: job/ sets this to td_samples. NULL: nobody is told. */
extern void (*td__on_batch)(td_tensor *sample);
/* Everything that still lives: loaders (with their threads), then datasets that no loader took. td_finish. */
void td__data_free_all(void);
void td__datasets_free_all(void);              /* the second half of it */

/* ---- dataset.c ------------------------------------------------------------------------------------------------------------ */
enum { TD__MAX_FIELDS = 8 };
struct td_dataset {
    int64_t  rows;
    size_t   n_fields;
    td_field field[TD__MAX_FIELDS];
    size_t   bytes[TD__MAX_FIELDS];            /* of one sample's field                                                     */
    int  (*read)(void *user, int64_t row, void *const *into);
    void (*close)(void *user);
    void    *user;
    bool     taken;                            /* by a loader, which frees it                                               */
    td_dataset *next, *prev;
};
extern td_dataset td__dataset_poison;
void td__dataset_destroy(td_dataset *data);    /* taken or not                                                              */

/* ---- bytes.c: errors are td__fail's, begin with `who: FILE:` and name the byte ------------------------------------------------ */
typedef struct td__bytes td__bytes;
td__bytes *td__bytes_open(const char *who, const char *path);   /* gzip when the name ends in ".gz"; NULL after td__fail       */
void        td__bytes_close(td__bytes *b);
/* Up to n bytes of contents; fewer only at the end; negative after td__fail. */
int64_t     td__bytes_read(td__bytes *b, void *into, size_t n);
int64_t     td__bytes_total(const td__bytes *b);                /* of the contents, or -1 when only reading tells              */
const char *td__bytes_path(const td__bytes *b);
const char *td__bytes_unit(const td__bytes *b);                 /* "byte", or "decompressed byte"                            */

/* ---- sampler.c -------------------------------------------------------------------------------------------------------------- */
typedef struct { int64_t first, rows; } td__share;             /* of the epoch's order                                      */
int64_t   td__batches(int64_t rows, int64_t batch, int parts, bool drop_last);
td__share td__shard(int64_t k, int part, int parts, int64_t batch, int64_t rows);
void      td__epoch_order(uint64_t seed, int64_t epoch, int64_t rows, int64_t *order);   /* a permutation of 0 … rows-1        */

/* ---- augment.c ------------------------------------------------------------------------------------------------------------- */
bool td__augment_wanted(const td_augment *a);
int  td__augment_check(const td_dataset *data, const td_augment *a);    /* 0, or td__fail as td_loader_new                   */
bool td__augment_copy(td_augment *to, const td_augment *from, const td_dataset *data);   /* false: no memory; drop all the same */
void td__augment_drop(td_augment *a);
typedef struct { int64_t top, left; bool mirrored; } td__view;  /* where the window begins: -padding … +padding           */
td__view td__augment_view(const td_augment *a, uint64_t seed, int64_t epoch, int64_t sample);
/* to and from: f32 (c,h,w), apart from each other. */
void     td__augment_apply(const td_augment *a, td__view view, int64_t c, int64_t h, int64_t w, const float *from, float *to);

#endif
