/* io/safetensors.c: an open safetensors file: its life, and tensors that lie in its pages.
 *
 * Open files are listed, so that td_finish frees what the user left. The poisoned file is one static record without tensors.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include "io_impl.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_safetensors *files, poison;

/* ---- life ------------------------------------------------------------------------------------------------------------- */

td_safetensors *td__st_from_map(const char *who, td__map *map)
{
    td_safetensors *file = td__calloc(sizeof *file);
    if (file && td__st_index_make(&file->index, who, map) == 0) {
        file->map = map;
        return file;
    }
    td__map_unref(map);
    td__free(file);
    return NULL;
}

td_safetensors *td__st_open(const char *who, const char *path)
{
    td__map *map = td__map_open(who, path);
    return map ? td__st_from_map(who, map) : NULL;
}

void td__st_close(td_safetensors *file)
{
    if (!file)
        return;
    td__st_index_free(&file->index);
    td__map_unref(file->map);
    td__free(file);
}

td_safetensors *td_safetensors_open(const char *path)
{
    TD_ENTER();
    td_safetensors *file = td__st_open("td_safetensors_open", path);
    if (!file)
        return &poison;
    pthread_mutex_lock(&lock);
    file->next = files;
    if (files)
        files->prev = file;
    files = file;
    pthread_mutex_unlock(&lock);
    return file;
}

void td_safetensors_free(td_safetensors *file)
{
    if (!file || file == &poison)
        return;
    pthread_mutex_lock(&lock);
    *(file->prev ? &file->prev->next : &files) = file->next;
    if (file->next)
        file->next->prev = file->prev;
    pthread_mutex_unlock(&lock);
    td__st_close(file);
}

void td__io_free_all(void)
{
    while (files)
        td_safetensors_free(files);
    td__npz_free_all();
}

/* ---- looking ---------------------------------------------------------------------------------------------------------- */

/* 0; negative for NULL (after td__fail) and for the poisoned file. */
static int check(const char *who, const td_safetensors *file)
{
    if (!file)
        return td__fail(TD_ERR_ARGUMENT, "%s: the file is NULL", who);
    if (file != &poison)
        return 0;
    return td__pending() ? td__pending() : td__fail(TD_ERR_STATE, "%s: the file is the poisoned result of an earlier error", who);
}

static int check_name(const char *who, const td_safetensors *file, const char *name)
{
    int rc = check(who, file);
    return rc == 0 && !name ? td__fail(TD_ERR_ARGUMENT, "%s: the name is NULL", who) : rc;
}

size_t td_safetensors_count(const td_safetensors *file)
{
    TD_ENTER();
    return check("td_safetensors_count", file) == 0 ? file->index.n : 0;
}

const char *td_safetensors_name(const td_safetensors *file, size_t i)
{
    TD_ENTER();
    const char *who = "td_safetensors_name";
    if (check(who, file) != 0)
        return NULL;
    if (i < file->index.n)
        return file->index.entry[i].name;
    td__fail(TD_ERR_ARGUMENT, "%s: %s has %zu tensors, there is no number %zu", who, file->map->path, file->index.n, i);
    return NULL;
}

bool td_safetensors_has(const td_safetensors *file, const char *name)
{
    TD_ENTER();
    return check_name("td_safetensors_has", file, name) == 0 && td__st_find(&file->index, name);
}

size_t td_safetensors_metadata_count(const td_safetensors *file)
{
    TD_ENTER();
    return check("td_safetensors_metadata_count", file) == 0 ? file->index.n_metadata : 0;
}

const char *td_safetensors_metadata_key(const td_safetensors *file, size_t i)
{
    TD_ENTER();
    const char *who = "td_safetensors_metadata_key";
    if (check(who, file) != 0)
        return NULL;
    if (i < file->index.n_metadata)
        return file->index.metadata[i].key;
    td__fail(TD_ERR_ARGUMENT, "%s: %s has %zu metadata texts, there is no number %zu", who, file->map->path, file->index.n_metadata, i);
    return NULL;
}

const char *td_safetensors_metadata(const td_safetensors *file, const char *key)
{
    TD_ENTER();
    if (check_name("td_safetensors_metadata", file, key) != 0)
        return NULL;
    for (size_t i = 0; i < file->index.n_metadata; i++)
        if (strcmp(file->index.metadata[i].key, key) == 0)
            return file->index.metadata[i].value;
    return NULL;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------------ */

td_tensor *td__st_tensor(const char *who, td_safetensors *file, const td__st_entry *e)
{
    td__map *map = file->map;
    td__st_info info;
    if (td__st_describe(&file->index, who, map, e, &info) != 0)
        return td__poison();
    if (!info.supported) {
        td__fail(TD_ERR_DTYPE, "%s: %s: tensor \"%.80s\" is %s, which no dtype of Tandem is", who, map->path, e->name, info.dtype_text);
        return td__poison();
    }
    size_t at = file->index.data_at + (size_t)info.begin, bytes = (size_t)(info.end - info.begin);
    char what[128];
    snprintf(what, sizeof what, "tensor \"%.80s\"", e->name);
    if (info.dtype == TD_BOOL && td__map_check_bool(who, map, what, at, bytes) != 0)
        return td__poison();
    if (td__map_aligned(map, at, info.dtype))
        return td__map_tensor(map, at, info.shape, info.dtype);
    td_tensor *x = td__tensor_new(info.shape, info.dtype, (td_device){ TD_CPU, 0 });
    if (!x->poisoned && bytes > 0)
        memcpy(td__ptr(x), map->data + at, bytes);
    return x;
}

td_tensor *td_safetensors_get(td_safetensors *file, const char *name)
{
    TD_ENTER();
    const char *who = "td_safetensors_get";
    if (check_name(who, file, name) != 0)
        return td__poison();
    const td__st_entry *e = td__st_find(&file->index, name);
    if (!e) {
        td__fail(TD_ERR_ARGUMENT, "%s: %s has no tensor \"%.200s\" among its %zu", who, file->map->path, name, file->index.n);
        return td__poison();
    }
    return td__scoped_tensor(td__st_tensor(who, file, e));
}
