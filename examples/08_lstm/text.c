/* 08_lstm/text.c: reading a text, and the order in which its windows are seen. */
#include "text.h"
#include <stdio.h>
#include <stdlib.h>

text text_read(const char *path)
{
    FILE *in = path ? fopen(path, "rb") : popen("bible -f gen1:1-rev22:21 2>/dev/null", "r");
    text t = { 0 };
    size_t room = 0, got = 1;
    while (in && got > 0) {
        if ((size_t)t.n == room) {
            room = room ? 2 * room : 1 << 16;
            t.byte = realloc(t.byte, room);
            if (!t.byte) {
                fprintf(stderr, "lstm: no memory for %zu bytes of text\n", room);
                exit(1);
            }
        }
        got = fread(t.byte + t.n, 1, room - (size_t)t.n, in);
        t.n += (int64_t)got;
    }
    if (in && !path)
        pclose(in);
    else if (in)
        fclose(in);
    if (t.n > 0)
        return t;
    if (path)
        fprintf(stderr, "lstm: %s cannot be read or is empty\n", path);
    else
        fprintf(stderr, "lstm: `bible` printed nothing: install Debian's bible-kjv, or give a text with --text FILE\n");
    exit(1);
}

/* ---- streams ----------------------------------------------------------------------------------------------------------- */

typedef struct { const unsigned char *byte; int64_t streams, apart, length; } source;

static int read_row(void *user, int64_t row, void *const *into)
{
    const source *s = user;
    const unsigned char *at = s->byte + row % s->streams * s->apart + row / s->streams * s->length;
    int64_t *x = into[0], *y = into[1];
    for (int64_t i = 0; i < s->length; i++) {
        x[i] = at[i];
        y[i] = at[i + 1];
    }
    return 0;
}

td_dataset *text_streams(const text *t, int64_t from, int64_t to, int64_t streams, int64_t length)
{
    const int64_t apart = (to - from) / streams, windows = apart > 0 ? (apart - 1) / length : 0;
    source *s = malloc(sizeof *s);
    if (!s || windows < 1) {
        fprintf(stderr, "lstm: %lld bytes of text are too few for %lld streams with a window of %lld bytes\n", (long long)(to - from),
                (long long)streams, (long long)length);
        exit(1);
    }
    *s = (source){ .byte = t->byte + from, .streams = streams, .apart = apart, .length = length };
    const td_field field[2] = { { TD_SHAPE(length), TD_I64 }, { TD_SHAPE(length), TD_I64 } };
    return td_dataset_new(&(td_dataset_source){ .rows = windows * streams, .field = field, .n_fields = 2, .read = read_row, .close = free }, s);
}
