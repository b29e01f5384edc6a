/* io/npy_write.c: td_npy_save: NumPy's format 1.0. The header is padded so that the data starts at a multiple of 64, as NumPy itself does. */
#include <stdio.h>
#include <string.h>
#include "io_impl.h"

static const char *const descr[] = {
    [TD_F32] = "<f4", [TD_F64] = "<f8", [TD_F16] = "<f2", [TD_I64] = "<i8", [TD_I32] = "<i4", [TD_U8] = "|u1", [TD_BOOL] = "|b1",
};

/* x read with its dimensions reversed: a view without references of its own, good for one look. */
static td_tensor reversed(const td_tensor *x)
{
    td_tensor r = *x;
    for (int i = 0; i < x->shape.ndim; i++) {
        r.shape.dim[i] = x->shape.dim[x->shape.ndim - 1 - i];
        r.stride[i] = x->stride[x->shape.ndim - 1 - i];
    }
    return r;
}

/* Magic, version, length and dict: a multiple of 64 bytes, ended by a newline. */
static size_t make_header(char into[static 512], const td_tensor *x, bool fortran)
{
    int n = snprintf(into + 10, 400, "{'descr': '%s', 'fortran_order': %s, 'shape': (", descr[x->dtype], fortran ? "True" : "False") + 10;
    for (int i = 0; i < x->shape.ndim; i++)
        n += snprintf(into + n, 32, i ? ", %lld" : "%lld", (long long)x->shape.dim[i]);
    n += snprintf(into + n, 16, "%s), }", x->shape.ndim == 1 ? "," : "");
    while (n % 64 != 63)
        into[n++] = ' ';
    into[n++] = '\n';
    memcpy(into, "\x93NUMPY\x01\x00", 8);
    into[8] = (char)((n - 10) & 0xff);
    into[9] = (char)((n - 10) >> 8);
    return (size_t)n;
}

int td__npy_text(const char *who, const td_tensor *x, td__npy_head *head)
{
    if ((size_t)x->dtype >= TD_COUNT(descr) || !descr[x->dtype])
        return td__fail(TD_ERR_DTYPE, "%s: NumPy has no %s; td_safetensors_save writes it", who, td_dtype_name(x->dtype));
    head->order = reversed(x);
    bool fortran = !td_is_contiguous(x) && td_is_contiguous(&head->order);
    if (!fortran)
        head->order = *x;
    head->n = make_header(head->text, x, fortran);
    return 0;
}

int td_npy_save(const char *path, td_tensor *x)
{
    TD_ENTER();
    static const char who[] = "td_npy_save";
    td__npy_head head;
    int rc = td__pending();
    if (rc == 0)
        rc = td__tensor_check(who, x);
    if (rc == 0)
        rc = td__npy_text(who, x, &head);
    if (rc != 0)
        return rc;
    td__atomic_file f;
    rc = td__atomic_open(&f, who, path);
    if (rc == 0)
        rc = td__atomic_write(&f, head.text, head.n);
    if (rc == 0)
        td__atomic_tensor(&f, &head.order);
    return td__atomic_close(&f);
}
