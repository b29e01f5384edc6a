/* io/scan.h: a large JSON object in a mapped file, cut into its members one at a time. Internal to io/. */
#ifndef TD_IO_SCAN_H
#define TD_IO_SCAN_H
#include <jansson.h>
#include "io_impl.h"

/* n bytes of text, from byte `base` of the file on; at: the next one to look at; whole: what the text is ("header"), for sentences. */
typedef struct { const char *who, *whole; const td__map *map; const char *text; uint32_t n, at, base; } td__scan;
typedef struct { uint32_t key, key_length, at, length; } td__member;      /* where its key (with quotes) and its value stand  */

int  td__scan_bad(const td__scan *s, size_t at, const char *format, ...) TD_PRINTF(3, 4);   /* TD_ERR_FORMAT: file, byte, sentence */
const char *td__scan_shown(const char *name, char into[static 96]);
const char *td__scan_got(const td__scan *s, char into[static 32]);        /* what stands at s->at, for "expected …, got …"        */
void td__scan_space(td__scan *s);
int  td__scan_expect(td__scan *s, char wanted);
/* The next member of an object whose opening bracket is behind s->at: 1, 0 at its end (s->at behind the bracket), or negative. Keys
 * have at most `room` bytes. Brackets inside the value are only counted: whether they match is the parser's matter. */
int  td__scan_member(td__scan *s, td__member *m, bool first, size_t room);
json_t *td__scan_parse(const td__scan *s, uint32_t at, uint32_t length, size_t flags, const char *what);   /* NULL after td__fail     */
/* The decoded text goes to *room, which moves on; NULL after td__fail. Never longer than what stands in the file. */
char *td__scan_decode(const td__scan *s, uint32_t at, uint32_t length, const char *what, char **room);
#endif
