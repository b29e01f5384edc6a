/* io/npy.c: td_npy_load: NumPy's file of one array; and the same from pieces, for a member of an npz file.
 *
 * Six bytes of magic, two of version, the header's length (16 bits in version 1, 32 in 2 and 3), a Python dict with descr, fortran_order
 * and shape, the data. The dict is read by a small parser for exactly that: strings, True and False, a tuple of whole numbers.
 * The file is mapped and its length compared with the shape before anything is allocated.
 */
#include <stdio.h>
#include <string.h>
#include "io_impl.h"

typedef td__npy npy;

static TD_PRINTF(3, 4) int bad(const npy *f, size_t at, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td__fail(TD_ERR_FORMAT, "%s: %s: at byte %zu: %s", f->who, f->map->path, at, text);
}

/* ---- the dict ------------------------------------------------------------------------------------------------------------ */

/* The next character that is no space, 0 at the header's end. */
static char peek(npy *f)
{
    while (f->at < f->end && strchr(" \t\r\n", f->map->data[f->at]) && f->map->data[f->at])
        f->at++;
    return f->at < f->end ? (char)f->map->data[f->at] : '\0';
}

static int expect(npy *f, char wanted)
{
    char c = peek(f);
    if (c == wanted) {
        f->at++;
        return 0;
    }
    if (f->at >= f->end)
        return bad(f, f->at, "expected '%c', got the header's end", wanted);
    return c > ' ' && c < 0x7f ? bad(f, f->at, "expected '%c', got '%c'", wanted, c)
                               : bad(f, f->at, "expected '%c', got byte 0x%02x", wanted, (unsigned char)c);
}

/* A string without escapes, in either kind of quotes. */
static int string(npy *f, char into[static 32], const char *what)
{
    char quote = peek(f);
    size_t begin = f->at, n = 0;
    if (quote != '\'' && quote != '"')
        return bad(f, f->at, "expected %s, a text in quotes", what);
    for (f->at++; f->at < f->end && (char)f->map->data[f->at] != quote; f->at++) {
        unsigned char c = f->map->data[f->at];
        if (c < ' ' || c > '~' || c == '\\' || n == 31)
            return bad(f, begin, "expected %s, a text of up to 31 plain characters", what);
        into[n++] = (char)c;
    }
    into[n] = '\0';
    if (f->at >= f->end)
        return bad(f, begin, "%s has no closing quote before the header's end", what);
    f->at++;
    return 0;
}

static int read_descr(npy *f)
{
    static const struct { const char *text; td_dtype dtype; } types[] = {
        { "f4", TD_F32 }, { "f8", TD_F64 }, { "f2", TD_F16 }, { "i8", TD_I64 }, { "i4", TD_I32 }, { "u1", TD_U8 }, { "b1", TD_BOOL },
    };
    char text[32], c = peek(f);
    size_t at = f->at;
    if (c == '[' || c == '(')
        return bad(f, at, "a structured dtype, expected one such as '<f4'");
    int rc = string(f, text, "the dtype");
    if (rc != 0)
        return rc;
    const char *type = text + (*text && strchr("<>|=", *text) ? 1 : 0);
    for (size_t i = 0; i < TD_COUNT(types); i++)
        if (strcmp(type, types[i].text) == 0) {
            f->dtype = types[i].dtype;
            f->big_endian = *text == '>' && td_dtype_size(f->dtype) > 1;
            return 0;
        }
    return bad(f, at, "dtype '%s', expected one of f4 f8 f2 i8 i4 u1 b1%s", text, *type == 'O' ? "; pickled objects are never read" : "");
}

static int read_bool(npy *f)
{
    char c = peek(f);
    const char *word = c == 'T' ? "True" : "False";
    size_t n = strlen(word);
    if (f->end - f->at < n || memcmp(f->map->data + f->at, word, n) != 0)
        return bad(f, f->at, "expected fortran_order, True or False");
    f->fortran = c == 'T';
    f->at += n;
    return 0;
}

static int read_shape(npy *f)
{
    char text[128];
    size_t begin = f->at;
    int64_t elements = 1;
    int rc = expect(f, '(');
    f->shape = TD_SCALAR;
    while (rc == 0 && peek(f) != ')') {
        int64_t size = 0;
        char c = peek(f);
        if (c < '0' || c > '9')
            return bad(f, f->at, "expected a dimension, a whole number from 0 up");
        if (f->shape.ndim == TD_MAX_DIMS)
            return bad(f, f->at, "the shape has more than %d dimensions", TD_MAX_DIMS);
        for (; f->at < f->end && (c = (char)f->map->data[f->at]) >= '0' && c <= '9'; f->at++)
            if (__builtin_mul_overflow(size, 10, &size) || __builtin_add_overflow(size, c - '0', &size))
                return bad(f, begin, "dimension %d of the shape is larger than any array's", f->shape.ndim);
        f->shape.dim[f->shape.ndim++] = size;
        if (size > 0 && (__builtin_mul_overflow(elements, size, &elements) || elements > INT64_MAX / 16))
            return bad(f, begin, "shape %s has more elements than can be addressed", td__shape_text(f->shape, text));
        if (f->at < f->end && f->map->data[f->at] == 'L')        /* Python 2 wrote 3L                                       */
            f->at++;
        if (peek(f) != ')')
            rc = expect(f, ',');
    }
    return rc ? rc : expect(f, ')');
}

static int read_dict(npy *f)
{
    static const char *const keys[] = { "descr", "fortran_order", "shape" };
    static int (*const parse[])(npy *f) = { read_descr, read_bool, read_shape };
    bool there[3] = { false };
    char key[32];
    int rc = expect(f, '{');
    while (rc == 0 && peek(f) != '}') {
        size_t at = f->at, k = 0;
        rc = string(f, key, "a key");
        if (rc != 0)
            return rc;
        while (k < 3 && strcmp(key, keys[k]) != 0)
            k++;
        if (k == 3 || there[k])
            return bad(f, at, "the key '%s' %s", key, k == 3 ? "is none of descr, fortran_order and shape" : "is there twice");
        there[k] = true;
        rc = expect(f, ':');
        if (rc == 0) {
            peek(f);
            rc = parse[k](f);
        }
        if (rc == 0 && peek(f) != '}')
            rc = expect(f, ',');
    }
    if (rc == 0)
        rc = expect(f, '}');
    for (int k = 0; k < 3 && rc == 0; k++)
        if (!there[k])
            rc = bad(f, f->at, "the header ends without the key '%s'", keys[k]);
    peek(f);
    if (rc == 0 && f->at < f->end)
        rc = bad(f, f->at, "expected only spaces after the header's dict");
    return rc;
}

/* ---- the file ------------------------------------------------------------------------------------------------------------ */

int td__npy_prefix(npy *f)
{
    const unsigned char *p = f->map->data;
    size_t size = f->map->size;
    if (size < 10 || memcmp(p, "\x93NUMPY", 6) != 0)
        return bad(f, 0, "expected the bytes 93 'NUMPY', a version and the header's length, which are 10 at least%s",
                   size < 10 ? "; the file is shorter" : "");
    int version = p[6];
    if (version < 1 || version > 3 || p[7] != 0)
        return bad(f, 6, "version %d.%d, expected 1.0, 2.0 or 3.0", version, p[7]);
    f->at = version == 1 ? 10 : 12;
    if (size < f->at)
        return bad(f, 8, "the file ends inside the header's length");
    size_t length = p[8] | (size_t)p[9] << 8;
    if (version > 1)
        length |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
    if (length > TD__NPY_HEADER_ROOM)
        return bad(f, 8, "the header's length is %zu, at most %d is expected", length, TD__NPY_HEADER_ROOM);
    if (length > size - f->at)
        return bad(f, 8, "the header's length is %zu, but the file has only %zu bytes after it", length, size - f->at);
    f->end = f->at + length;
    return 0;
}

int td__npy_header(npy *f)
{
    int rc = read_dict(f);
    if (rc != 0)
        return rc;
    char text[128];
    size_t want = (size_t)td__shape_numel(f->shape) * td_dtype_size(f->dtype), have = f->map->size - f->end;
    return want == have ? 0 : bad(f, have < want ? f->map->size : f->end + want, "shape %s of %s takes %zu bytes after the header, but the file has %zu",
                                  td__shape_text(f->shape, text), td_dtype_name(f->dtype), want, have);
}

static int read_header(npy *f)
{
    int rc = td__npy_prefix(f);
    if (rc == 0)
        rc = td__npy_header(f);
    return rc || f->dtype != TD_BOOL ? rc : td__map_check_bool(f->who, f->map, "the array", f->end, f->map->size - f->end);
}

static void swap(unsigned char *data, size_t n, size_t size)
{
    for (size_t i = 0; i < n; i++, data += size)
        for (size_t k = 0; k < size / 2; k++) {
            unsigned char c = data[k];
            data[k] = data[size - 1 - k];
            data[size - 1 - k] = c;
        }
}

/* Where the elements are (aligned), as a tensor whose first index runs fastest if the file's does; a host tensor of its own with one reference. */
static td_tensor *turned(const npy *f, td_tensor *raw)
{
    td_tensor *x = td__tensor_new(f->shape, f->dtype, (td_device){ TD_CPU, 0 });
    if (!x->poisoned) {
        int64_t stride[TD_MAX_DIMS], step = 1;
        for (int i = 0; i < f->shape.ndim; i++) {
            stride[i] = step;
            step *= f->shape.dim[i];
        }
        td_tensor *view = td__tensor_view(raw, f->shape, stride, 0);
        int rc = view->poisoned ? TD_ERR_MEMORY : td__copy(x, view, false);
        td__tensor_unref(view);
        if (rc != 0) {
            td__tensor_unref(x);
            x = td__poison();
        }
    }
    td__tensor_unref(raw);
    return x;
}

td_tensor *td__npy_finish(const npy *f, td_tensor *raw)
{
    size_t size = td_dtype_size(f->dtype), n = (size_t)td__shape_numel(f->shape);
    if (f->big_endian && n > 0)
        swap(td__ptr(raw), n, size);
    return f->fortran && f->shape.ndim > 1 && n > 0 ? turned(f, raw) : raw;
}

td_tensor *td_npy_load(const char *path)
{
    TD_ENTER();
    npy f = { .who = "td_npy_load" };
    td__map *map = td__map_open(f.who, path);
    if (!map)
        return td__poison();
    f.map = map;
    td_tensor *x = read_header(&f) == 0 ? td__tensor_new(f.shape, f.dtype, (td_device){ TD_CPU, 0 }) : td__poison();
    if (!x->poisoned && map->size > f.end) {
        /* in Fortran order the file's own pages are turned where they can be; elsewhere a copy is                          */
        bool in_place = f.fortran && f.shape.ndim > 1 && td__map_aligned(map, f.end, f.dtype);
        if (in_place) {
            td__tensor_unref(x);
            x = td__map_tensor(map, f.end, f.shape, f.dtype);
        } else {
            memcpy(td__ptr(x), map->data + f.end, map->size - f.end);
        }
        if (!x->poisoned)
            x = td__npy_finish(&f, x);
    }
    td__map_unref(map);
    x = td__scoped_tensor(x);
    return x->poisoned ? x : td_to(x, td_device_default());
}
