/* tandem/io.h: files that other programs read and write: safetensors (Hugging Face), npy and npz (NumPy); a module's state by PyTorch's
 * state_dict names; a job's training state in one file.
 *
 * Nothing in a file is believed: every length, offset, shape and name is checked when it is opened, and a file that breaks its format is
 * one sentence with the file, the byte and what was expected there (TD_ERR_FORMAT); a file that cannot be opened, read or written is
 * TD_ERR_IO. Memory never exceeds the file's size plus 64 MiB (twice its size for an npy in Fortran order whose
 * data is not aligned).
 * Writing is atomic: a temporary file in the same folder (NAME.tmp-PID-N), fsync, rename, fsync of the folder. A process that is killed
 * meanwhile leaves the old file whole, and perhaps a temporary one. All writers refuse to act while an error is pending. Every rank
 * that calls one writes: let rank 0 alone do it, or give each rank its own path.
 */
#ifndef TANDEM_IO_H
#define TANDEM_IO_H
#include <tandem/data.h>
#include <tandem/ddp.h>
#include <tandem/nn.h>
#include <tandem/optim.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- a module's parameters and buffers, as safetensors --------------------------------------------------------------
 * Names are those of PyTorch's state_dict: paths below m, "0.weight", "1.running_mean". A tied tensor is written under each of its
 * names, as state_dict lists it. 0, or a negative code after one sentence. */
TD_API int td_save(td_module *m, const char *path);
typedef struct {
    int64_t max_shard_bytes;   /* default 5e9 (Hugging Face's "5GB"): of tensors in one file; a larger tensor has its own         */
    uint64_t reserved[4];
} td_save_opts;
/* As td_save, in files of limited size as Hugging Face has them: path "DIR/model.safetensors" gives DIR/model-00001-of-00003.safetensors … and, last,
 * DIR/model.safetensors.index.json with metadata.total_size and the weight_map. What fits into one file is saved as path alone. An earlier
 * save's path or index is removed when the other has been written; a process that is killed meanwhile may leave shards of two saves under one
 * index (the index is old then, its shards partly new), so give each save of value a folder of its own. */
TD_API int td_save_sharded(td_module *m, const char *path, const td_save_opts *opts);
typedef struct {
    bool partial;        /* names that only the file or only the module has are passed over; default false: an error   */
    uint64_t reserved[4];
} td_load_opts;
/* path: a safetensors file; an index (ends in ".json"), whose shards lie beside it; or the name under which td_save_sharded saved. An index must
 * name what its shards hold, neither more nor less (16 MiB, 4,096 files at most).
 * Values are copied into the module's own tensors, converted between floating dtypes where the file has another. Names that are missing in
 * the file or unknown to the module, and shapes or kinds of dtype that differ, are named in one sentence, and then nothing
 * has changed. A tied tensor needs one of its names; where the file has several they must hold equal bytes. PyTorch's "num_batches_tracked"
 * is passed over. On several ranks: load on every one, or before td_ddp_new, which sends rank 0's values. */
TD_API int td_load(td_module *m, const char *path, const td_load_opts *opts);

/* ---- safetensors: open ---------------------------------------------------------------------------------------------------
 * The file is mapped, not read: a tensor's elements are the file's own pages, read when first touched. Pages are private (copy on
 * write): changing a tensor in place changes this process's memory and never the file. The mapping lives until the file is freed and the
 * last of its tensors is gone. A file that another program shortens meanwhile ends this process (SIGBUS): replace files by
 * rename, as the writers here do. Limits: header 100,000,000 bytes, name 4,096, one tensor's description 4,096, a metadata text 16 MiB, 65,536 of them. */
typedef struct td_safetensors td_safetensors;
TD_API td_safetensors *td_safetensors_open(const char *path);    /* yours to free (td_finish frees what you left)      */
TD_API void        td_safetensors_free(td_safetensors *file);    /* its tensors live on; NULL is fine                   */
TD_API size_t      td_safetensors_count(const td_safetensors *file);
TD_API const char *td_safetensors_name(const td_safetensors *file, size_t i);   /* in the header's order; the file's; NULL and an error
                                                                                   when i is not below the count        */
TD_API bool        td_safetensors_has(const td_safetensors *file, const char *name);
/* Host memory (td_to moves it), owned by the innermost scope. One that lies unaligned in the file is copied. Poisoned and an error where there
 * is no such name, the dtype is none of Tandem's (I8 I16 U16 U32 U64 F8_E4M3 F8_E5M2), or a BOOL holds other bytes than 0 and 1. */
TD_API td_tensor  *td_safetensors_get(td_safetensors *file, const char *name);
TD_API size_t      td_safetensors_metadata_count(const td_safetensors *file);
TD_API const char *td_safetensors_metadata_key(const td_safetensors *file, size_t i);       /* by key; NULL and an error beyond the last */
TD_API const char *td_safetensors_metadata(const td_safetensors *file, const char *key);    /* the file's; NULL when there is none    */

/* ---- safetensors: write -------------------------------------------------------------------------------------------------- */
typedef struct { const char *name; td_tensor *tensor; } td_named;        /* any dtype, device and strides                   */
typedef struct { const char *key, *value; } td_text_pair;
/* Names and keys: UTF-8, unique, at most 4,096 bytes as JSON writes them, no name "__metadata__". Data lies in the file by element size,
 * the largest first, then in the order given, so that every tensor is aligned. 0, or a negative code after one sentence. */
TD_API int td_safetensors_save(const char *path, const td_named *tensors, size_t n, const td_text_pair *metadata, size_t n_metadata);

/* ---- npy: one array (NumPy's format 1.0, 2.0 and 3.0) -----------------------------------------------------------------------
 * Read: C or Fortran order, either byte order; f4 f8 f2 i8 i4 u1 b1; up to 8 dimensions. The result is contiguous, on the default device, owned
 * by the innermost scope; poisoned after an error. Pickled objects and structured dtypes are refused. */
TD_API td_tensor *td_npy_load(const char *path);
/* Format 1.0, little-endian; fortran_order True where x is a transposed view that lies so in memory, else C order. NumPy has no bf16. */
TD_API int        td_npy_save(const char *path, td_tensor *x);

/* ---- npz: several arrays (numpy.savez, numpy.savez_compressed) ------------------------------------------------------------------
 * A zip file (ZIP64 too) of stored or deflated members NAME.npy; others are passed over. Opening reads the directory (at most 65,535 members);
 * a member is read when it is asked for, and its checksum compared. What a deflated member says it will take is compared with its npy header
 * and with max_bytes before memory is taken for it, so a zip bomb is one sentence. One array is in memory once (twice in Fortran order). */
typedef struct td_npz td_npz;
typedef struct {
    int64_t max_bytes;   /* default 64 MiB plus 32 times the file's size: the most that one deflated member may take            */
    uint64_t reserved[4];
} td_npz_opts;
TD_API td_npz     *td_npz_open(const char *path, const td_npz_opts *opts);   /* yours to free (td_finish frees what you left)  */
TD_API void        td_npz_free(td_npz *file);                                /* its arrays live on; NULL is fine             */
TD_API size_t      td_npz_count(const td_npz *file);
TD_API const char *td_npz_name(const td_npz *file, size_t i);                /* without ".npy", in the file's order; NULL and an error
                                                                                when i is not below the count                */
TD_API bool        td_npz_has(const td_npz *file, const char *name);
TD_API td_tensor  *td_npz_get(td_npz *file, const char *name);               /* as td_npy_load; poisoned after an error       */
typedef struct {
    bool compressed;     /* default false: stored, as numpy.savez; true: deflated, as numpy.savez_compressed                   */
    uint64_t reserved[4];
} td_npz_save_opts;
/* Names: UTF-8, unique, not empty. 0, or a negative code after one sentence. */
TD_API int td_npz_save(const char *path, const td_named *tensors, size_t n, const td_npz_save_opts *opts);

/* ---- the training state: all that a job needs to go on where it was -------------------------------------------------------------
 * One safetensors file: weights and buffers ("model/0.weight": other programs read them), every optimizer's moments and steps by parameter
 * name ("optim/0/0.weight/moment0") and its learning rates, averages ("ema/0.weight"), the order of ddp's buckets, your own tensors ("extra/…"),
 * and as metadata the loader's epoch and position, the loss scaler, the counters of random numbers (td_seed, td_step_get, the random calls of this
 * forward), your step, and a BLAKE2b-256 of the whole file, which is verified before anything else is believed.
 * What was saved between two steps goes on bit for bit: alone, and on several ranks with as many as before, in mid-epoch too. (Each
 * rank's own running statistics of a local batch norm are rank 0's after a load; they take no part in training.) */
typedef struct {                 /* any part may be NULL: not saved; on load left alone, also where the file has it                */
    td_module *model;
    td_optim *const *optims; size_t n_optims;
    td_loader *loader;
    td_scaler *scaler;
    td_ema *ema;
    td_ddp *ddp;
    const td_named *extra; size_t n_extra;   /* your own; unique names; load copies into these very tensors                       */
    int64_t step;                /* yours: saved, and set by load                                                                 */
    uint64_t reserved[8];
} td_train_state;
/* Both are collective over ddp's communicator, or the world without ddp, and return the same code on every rank, with the sentence of the lowest
 * rank that failed where a rank has none of its own. Refused
 * while gradients wait for a step (save after td_optim_step, and after td_scaler_update where
 * there is one, not between accumulating backwards) and while an error is pending.
 * Save: rank 0 writes its own values, as td_save does; every rank returns when the file stands. */
TD_API int td_train_state_save(const td_train_state *state, const char *path);
/* Every rank reads the file (the same path; copies must be equal, which is compared). Build the same model, optimizers, loader, ddp first.
 * Everything is checked before anything changes: names, shapes, dtypes, kinds of optimizers, their groups and each group's options except
 * the learning rate (which the file sets), that the loader has the same rows, global batch, order and seed (so another number of ranks may go on
 * where batch times ranks is the same; not bit for bit), the averages' decay. What does not fit is one sentence, and nothing has changed. */
TD_API int td_train_state_load(td_train_state *state, const char *path);

#ifdef __cplusplus
}
#endif
#endif
