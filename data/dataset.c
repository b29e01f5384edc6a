/* data/dataset.c: the record of a data set: how many rows, what a row holds, how to read one.
 *
 * A dataset is its maker's until a loader takes it; the loader then frees it. All that live are in one list, so that td_finish
 * can free what was left. The poisoned dataset is a constant that nothing changes or frees.
 */
#include "data_impl.h"
#include <pthread.h>

td_dataset td__dataset_poison;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_dataset *live;

static void enlist(td_dataset *data)
{
    pthread_mutex_lock(&lock);
    data->next = live;
    if (live)
        live->prev = data;
    live = data;
    pthread_mutex_unlock(&lock);
}

static void delist(td_dataset *data)
{
    pthread_mutex_lock(&lock);
    if (data->prev)
        data->prev->next = data->next;
    else
        live = data->next;
    if (data->next)
        data->next->prev = data->prev;
    pthread_mutex_unlock(&lock);
}

static int check(const td_dataset_source *source)
{
    if (!source)
        return td__fail(TD_ERR_ARGUMENT, "td_dataset_new: source is NULL, expected a td_dataset_source");
    if (!source->read)
        return td__fail(TD_ERR_ARGUMENT, "td_dataset_new: the source has no read function");
    if (source->rows < 0)
        return td__fail(TD_ERR_ARGUMENT, "td_dataset_new: rows is %lld, expected 0 or more", (long long)source->rows);
    if (source->n_fields < 1 || source->n_fields > TD__MAX_FIELDS || !source->field)
        return td__fail(TD_ERR_ARGUMENT, "td_dataset_new: %zu fields given, expected 1 to %d", source->field ? source->n_fields : 0,
                        TD__MAX_FIELDS);
    for (size_t i = 0; i < source->n_fields; i++) {
        const td_field *f = &source->field[i];
        if (td__shape_check("td_dataset_new", f->shape) != 0)
            return td_error_pending();
        if (f->shape.ndim == TD_MAX_DIMS)
            return td__fail(TD_ERR_SHAPE, "td_dataset_new: field %zu has %d dimensions, at most %d leave one for the batch", i,
                            TD_MAX_DIMS, TD_MAX_DIMS - 1);
        if (td_dtype_size(f->dtype) == 0)
            return td__fail(TD_ERR_DTYPE, "td_dataset_new: field %zu has dtype %d, which is none", i, (int)f->dtype);
    }
    return 0;
}

td_dataset *td_dataset_new(const td_dataset_source *source, void *user)
{
    TD_ENTER();
    if (check(source) != 0)
        return &td__dataset_poison;
    td_dataset *data = td__calloc(sizeof *data);
    if (!data)
        return &td__dataset_poison;
    data->rows = source->rows;
    data->n_fields = source->n_fields;
    for (size_t i = 0; i < source->n_fields; i++) {
        data->field[i] = source->field[i];
        data->bytes[i] = (size_t)td__shape_numel(source->field[i].shape) * td_dtype_size(source->field[i].dtype);
    }
    data->read = source->read;
    data->close = source->close;
    data->user = user;
    enlist(data);
    return data;
}

int64_t td_dataset_rows(const td_dataset *data)
{
    TD_ENTER();
    if (!data) {
        td__fail(TD_ERR_ARGUMENT, "td_dataset_rows: the dataset is NULL");
        return 0;
    }
    return data->rows;
}

void td__dataset_destroy(td_dataset *data)
{
    if (!data || data == &td__dataset_poison)
        return;
    delist(data);
    if (data->close)
        data->close(data->user);
    td__free(data);
}

void td_dataset_free(td_dataset *data)
{
    TD_ENTER();
    if (data && data->taken) {
        td__fail(TD_ERR_STATE, "td_dataset_free: a loader has taken this dataset and frees it with itself");
        return;
    }
    td__dataset_destroy(data);
}

void td__datasets_free_all(void)
{
    while (live)
        td__dataset_destroy(live);
}
