/* 08_lstm/text.h: a text as bytes, and as parallel streams of windows. */
#ifndef LSTM_TEXT_H
#define LSTM_TEXT_H
#include <stddef.h>
#include <tandem.h>

typedef struct { unsigned char *byte; int64_t n; } text;

/* The bytes of a file; path NULL: what Debian's `bible -f gen1:1-rev22:21` prints. Ends the program with a line on stderr where there is none. */
text text_read(const char *path);

/* Part [from, to) of t, which must outlive the data set, cut into `streams` pieces of equal length; each is read in windows of `length` bytes, one
 * after the other. Row k*streams + s is window k of stream s: field 0 its bytes, field 1 the bytes after each, both i64 (length). So a batch of
 * all streams is one window further in every one of them, and a loader gives each rank its own streams. */
td_dataset *text_streams(const text *t, int64_t from, int64_t to, int64_t streams, int64_t length);

#endif
