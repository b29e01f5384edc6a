/* io/io_impl.h: files from inside. Internal.
 *
 *   map.c      one file in memory, read-only on disk, counted          atomic.c   one file written whole or not at all
 *   scan.c     a large JSON object, cut into members (scan.h)
 *   header.c   a safetensors header: found, checked, indexed          safetensors.c   the user's end of it, and its life
 *   write.c    td_safetensors_save                                    state.c    td_save and td_load
 *   shards.c   one file, or several with an index                      shards_write.c  td_save_sharded
 *   npy.c      td_npy_load                                            npy_write.c     td_npy_save
 *   npz.c      reading npz                                            npz_write.c     td_npz_save
 *   seal.c     a checksum over a whole safetensors file                train_state*.c  the training state: train_state.h
 */
#ifndef TD_IO_IMPL_H
#define TD_IO_IMPL_H
#include <nn_impl.h>
#include <sodium/crypto_generichash.h>
#include <tandem/io.h>

void td__io_free_all(void);                    /* every open safetensors file: td_finish                                   */

/* ---- map.c: errors are td__fail's and begin with `who: FILE:` ------------------------------------------------------------- */
typedef struct {
    _Atomic int32_t refs;
    unsigned char *data;                       /* private pages: a write changes memory, not the file; NULL when size is 0   */
    size_t size;
    char  *path;
} td__map;
td__map *td__map_open(const char *who, const char *path);       /* a regular file; NULL after td__fail                       */
void     td__map_unref(td__map *map);                           /* NULL is fine                                             */
/* A tensor (one reference, in no scope) whose elements are the file's bytes at `at`; it keeps the map. Aligned only: td__map_aligned. */
td_tensor *td__map_tensor(td__map *map, size_t at, td_shape shape, td_dtype dtype);
bool     td__map_aligned(const td__map *map, size_t at, td_dtype dtype);
/* 0, or td__fail: a BOOL's bytes are 0 or 1. `what` names the array in the sentence. */
int      td__map_check_bool(const char *who, const td__map *map, const char *what, size_t at, size_t n);

/* ---- atomic.c --------------------------------------------------------------------------------------------------------------- */
typedef struct {
    const char *who; char *path, *temporary; int fd, rc; int64_t written;
    crypto_generichash_state *hash;            /* sees all that is written; NULL: nobody does                               */
} td__atomic_file;
int td__atomic_open(td__atomic_file *f, const char *who, const char *path);
int td__atomic_write(td__atomic_file *f, const void *bytes, size_t n);
int td__atomic_tensor(td__atomic_file *f, td_tensor *x);         /* its elements in C order                                  */
int td__atomic_patch(td__atomic_file *f, int64_t at, const void *bytes, size_t n);   /* over what is written, unseen by hash     */
int td__atomic_close(td__atomic_file *f);                        /* publishes it; after an error removes it and returns that  */

/* ---- header.c ----------------------------------------------------------------------------------------------------------------- */
enum { TD__NAME_ROOM = 4096, TD__ENTRY_ROOM = 4096, TD__TEXT_ROOM = 16 << 20, TD__TEXTS = 65536, TD__HEADER_ROOM = 100000000 };
/* 40 bytes a tensor with `sorted`, where its shortest description takes 51: the index is never larger than the header. What
 * the description says is read anew when a tensor is asked for. */
typedef struct { const char *name; uint32_t at, length; uint64_t begin, end; } td__st_entry;   /* its text in the header; its data */
typedef struct { const char *key, *value; } td__st_text;
typedef struct {
    size_t n, n_metadata;
    td__st_entry *entry;                       /* in the header's order                                                   */
    uint32_t *sorted;                          /* indices by name                                                         */
    td__st_text *metadata;                     /* by key                                                                  */
    char   *strings;                           /* all names and texts, decoded                                             */
    size_t  data_at;                           /* of the buffer in the file                                                */
} td__st_index;
typedef struct { td_dtype dtype; bool supported; char dtype_text[16]; td_shape shape; uint64_t begin, end; } td__st_info;
int  td__st_index_make(td__st_index *index, const char *who, const td__map *map);     /* 0, or td__fail and nothing to free     */
void td__st_index_free(td__st_index *index);
const td__st_entry *td__st_find(const td__st_index *index, const char *name);         /* NULL when there is none               */
int  td__st_describe(const td__st_index *index, const char *who, const td__map *map, const td__st_entry *e, td__st_info *out);
const char *td__st_dtype_text(td_dtype dtype);                                        /* "F32"                                 */

/* ---- write.c ------------------------------------------------------------------------------------------------------------------ */
typedef enum { TD__PLAIN, TD__SEALED } td__st_kind;
/* Sealed: the first metadata is TD__SEAL_KEY with td__seal_blank. */
int td__st_save(const char *who, const char *path, td__st_kind kind, const td_named *tensors, size_t n, const td_text_pair *metadata,
                size_t n_metadata);

/* ---- seal.c --------------------------------------------------------------------------------------------------------------------- */
#define TD__SEAL_KEY "tandem.blake2b"
extern const char td__seal_blank[];            /* what stands in its place while the sum is made                             */
int td__seal_begin(const char *who, crypto_generichash_state *hash);
int td__seal_end(td__atomic_file *f);          /* writes the sum into its place                                              */
/* 0 and the sum in `text`, or td__fail: the file is not sealed, or was changed or cut since. */
int td__seal_check(const char *who, const td__map *map, char text[static 65]);

/* ---- state.c --------------------------------------------------------------------------------------------------------------------- */
typedef struct { char *name; td_tensor *tensor; const td__st_entry *entry; const struct td__part *shard; } td__io_slot;   /* shard: of entry */
typedef struct { td__io_slot *list; size_t n, room; } td__io_slots;   /* a module's parameters and buffers in state_dict's order      */
int    td__save(const char *who, td_module *m, const char *path);
int    td__io_slots_collect(td__io_slots *s, const td_module *m, const char *prefix);
void   td__io_slots_free(td__io_slots *s);
size_t td__io_slots_first(const td__io_slots *s, size_t i);          /* the first slot of the same (tied) tensor, or i               */

/* ---- safetensors.c ------------------------------------------------------------------------------------------------------------- */
struct td_safetensors { td__map *map; td__st_index index; td_safetensors *next, *prev; };
td_safetensors *td__st_open(const char *who, const char *path);                       /* in no list; NULL after td__fail        */
td_safetensors *td__st_from_map(const char *who, td__map *map);                       /* takes the map, also when it fails       */
void td__st_close(td_safetensors *file);
td_tensor *td__st_tensor(const char *who, td_safetensors *file, const td__st_entry *e);   /* one reference, in no scope         */

/* ---- shards.c ------------------------------------------------------------------------------------------------------------------ */
typedef struct td__part { td_safetensors *file; char *name; size_t base; } td__part;   /* base: number of its first tensor among all */
typedef struct { td__part *shard; size_t n, total; } td__parts;
/* One file; or, where the path ends in ".json", the files of an index; or, where there is no such file, those of PATH.index.json. */
int  td__parts_open(td__parts *s, const char *who, const char *path);               /* 0, or td__fail and nothing to close     */
void td__parts_close(td__parts *s);
const td__st_entry *td__parts_find(const td__parts *s, const char *name, const td__part **in);   /* NULL when there is none   */

/* ---- npy.c, npy_write.c, npz.c -------------------------------------------------------------------------------------------------- */
enum { TD__NPY_HEADER_ROOM = 1 << 20 };
typedef struct {
    const char *who;
    const td__map *map;                        /* size: of the whole file; data: at least what has been read of it             */
    size_t at, end;                            /* of the header, in the file                                               */
    td_dtype dtype;
    bool big_endian, fortran;
    td_shape shape;
} td__npy;
int  td__npy_prefix(td__npy *f);               /* the first 12 bytes (or 10): how long the header is                        */
int  td__npy_header(td__npy *f);               /* data holds the header: dtype, shape, whether the size fits                 */
td_tensor *td__npy_finish(const td__npy *f, td_tensor *raw);    /* takes raw, the elements as they stood in the file              */
/* What precedes the elements, and x with its dimensions in the order in which they are written: a view without references of its own. */
typedef struct { char text[512]; size_t n; td_tensor order; } td__npy_head;
int  td__npy_text(const char *who, const td_tensor *x, td__npy_head *head);
void td__npz_free_all(void);
#endif
