/* tensor/dtype.c: sizes and names of dtypes, and single elements read and written by dtype.
 *
 * The rules of conversion are in convert.h.
 */
#include "tensor_impl.h"
#include "convert.h"
#include <math.h>

static const struct { const char *name; size_t size; } dtypes[] = {
#define DTYPE_ROW(dtype, type, code, text) [dtype] = { text, sizeof(type) },
    TD_DTYPE_LIST(DTYPE_ROW)
};

size_t td_dtype_size(td_dtype dtype)
{
    return (unsigned)dtype < TD_COUNT(dtypes) ? dtypes[dtype].size : 0;
}

const char *td_dtype_name(td_dtype dtype)
{
    return (unsigned)dtype < TD_COUNT(dtypes) ? dtypes[dtype].name : "?";
}

int td__dtype_check(const char *who, td_dtype dtype)
{
    if ((unsigned)dtype < TD_COUNT(dtypes))
        return 0;
    return td__fail(TD_ERR_DTYPE, "%s: %d is not a dtype (TD_F32 … TD_BOOL are 0 to %d)", who, (int)dtype, (int)TD_COUNT(dtypes) - 1);
}

double td__element_get(td_dtype dtype, const void *at)
{
    switch (dtype) {
#define GET_CASE(which, type, code, text)                                                                               \
    case which: {                                                                                                   \
        type v;                                                                                                     \
        memcpy(&v, at, sizeof v);                                                                                   \
        return (double)td__get_##code(v);                                                                           \
    }
        TD_DTYPE_LIST(GET_CASE)
    }
    return NAN;
}

void td__element_put(td_dtype dtype, void *at, double value)
{
    switch (dtype) {
#define PUT_CASE(which, type, code, text)                                                                               \
    case which: {                                                                                                   \
        type v = td__put_##code(value);                                                                             \
        memcpy(at, &v, sizeof v);                                                                                   \
        return;                                                                                                     \
    }
        TD_DTYPE_LIST(PUT_CASE)
    }
}
