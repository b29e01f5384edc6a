/* io/train_state.h: the training state from inside. Internal to io/.
 *
 *   train_state.c           save and load: who checks what when, and that all ranks come out alike
 *   train_state_file.c      names, tensors and numbers to and from the file, each checked
 *   train_state_tensors.c   the model, averages, the user's own       train_state_optim.c    optimizers
 *   train_state_shards.c    moments of which each rank has a part
 *   train_state_counters.c  loader, scaler, random numbers, the order of ddp's buckets
 *
 * Every part has a `put` and a `take`. Take runs twice over the same code: first it only compares, then (apply) it also changes; so what has been
 * checked is what is done, and a file that does not fit changes nothing.
 */
#ifndef TD_TRAIN_STATE_H
#define TD_TRAIN_STATE_H
#include <jansson.h>
#include <data_impl.h>
#include <ddp_impl.h>
#include <optim_impl.h>
#include "io_impl.h"

typedef struct { const td_optim *opt; const td__flat *flat; int m; td_storage *all; } td__ts_whole;   /* a moment of a flat that ranks share */
typedef struct {
    const char *who, *path;
    const td_train_state *state;
    td__io_slots slots;                           /* of the model                                                              */
    td__io_slot **by_tensor;                      /* sorted, to find a tensor's name                                            */
    json_t *text;                              /* the numbers                                                               */
    td_named *list; size_t n, room;            /* put: names (owned) and tensors (referenced)                                 */
    td_safetensors *file;                      /* take                                                                      */
    bool *used, apply;
    td__ts_whole *whole; size_t n_whole;       /* put, on rank 0                                                            */
} td__ts;

/* ---- train_state_file.c ---- */
int  td__ts_begin(td__ts *t, const char *who, const char *path, const td_train_state *state);
void td__ts_end(td__ts *t);
/* The tensor's name in the model, or its place in a list: "#3". */
const char *td__ts_name(const td__ts *t, const td_tensor *x, size_t place, char into[static 32]);
int  td__ts_put(td__ts *t, td_tensor *x, const char *format, ...) TD_PRINTF(3, 4);
int  td__ts_put_numbers(td__ts *t, const int64_t *value, int64_t n, const char *format, ...) TD_PRINTF(4, 5);
/* into[key] = value, which is taken. NULL (no memory, or a number that is not finite) is td__fail. */
int  td__ts_set(const td__ts *t, json_t *into, const char *key, json_t *value);
int  td__ts_write(td__ts *t);
int  td__ts_open(td__ts *t, unsigned char sum[static 32]);
/* Is it there with this dtype and shape? Marks it as known; under apply copies it to `into`, unless that is NULL. */
int  td__ts_take(td__ts *t, td_tensor *into, td_dtype dtype, td_shape shape, const char *format, ...) TD_PRINTF(5, 6);
/* The same, but `into` (one dimension) gets the elements from `first` on. */
int  td__ts_take_part(td__ts *t, td_tensor *into, int64_t first, td_dtype dtype, td_shape shape, const char *format, ...) TD_PRINTF(6, 7);
int  td__ts_take_numbers(td__ts *t, int64_t *value, int64_t n, const char *format, ...) TD_PRINTF(4, 5);
int  td__ts_nothing_else(const td__ts *t);     /* what is in the file of a part that is asked for was all known               */
/* One sentence "who: path: …" */
int  td__ts_bad(const td__ts *t, int code, const char *format, ...) TD_PRINTF(3, 4);
/* Members of the numbers: `in` "the loader", for the sentence. 0 and *out, or td__ts_bad. */
const json_t *td__ts_object(const td__ts *t, const json_t *from, const char *key);      /* NULL after td__ts_bad              */
int  td__ts_integer(const td__ts *t, const json_t *from, const char *in, const char *key, int64_t least, int64_t *out);
int  td__ts_number(const td__ts *t, const json_t *from, const char *in, const char *key, double *out);
int  td__ts_flag(const td__ts *t, const json_t *from, const char *in, const char *key, bool *out);
/* The program's own value must be the file's. */
int  td__ts_same(const td__ts *t, const json_t *from, const char *in, const char *key, int64_t here);

/* ---- the parts: 0, or negative after td__fail ---- */
int td__ts_put_tensors(td__ts *t);
int td__ts_take_tensors(td__ts *t);
int td__ts_put_optims(td__ts *t);
int td__ts_optims_room(td__ts *t);             /* memory for moments, where parameters lie now                                */
int td__ts_take_optims(td__ts *t);
bool td__ts_optim_shared(const td_optim *opt);
bool td__ts_shared(const td_train_state *s);   /* is one of its optimizers' state shared by ranks?                           */
int td__ts_gather(td__ts *t, td_comm *comm);   /* collective: their moments, for td__ts_whole_of on rank 0; the same code everywhere */
td_storage *td__ts_whole_of(const td__ts *t, const td_optim *opt, const td__param *p, int m);   /* lies as p's flat does      */
void td__ts_gathered_free(td__ts *t);
int td__ts_put_counters(td__ts *t);
int td__ts_take_counters(td__ts *t);
int td__ts_put_ddp(td__ts *t);
int td__ts_take_ddp(td__ts *t);
#endif
