/* io/scan.c: a large JSON object, cut into its members one at a time.
 *
 * A JSON document as a tree takes thirty times the bytes of its text, and a hostile header may have 100 MB. So objects are only cut into
 * members here, without recursion, and the library parses one name, one description or one text at a time.
 */
#include <stdio.h>
#include <string.h>
#include "scan.h"

enum { DEEPEST = 16 };

int td__scan_bad(const td__scan *s, size_t at, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td__fail(TD_ERR_FORMAT, "%s: %s: at byte %zu: %s", s->who, s->map->path, s->base + at, text);
}

/* A name from a file as a sentence may show it: no control characters, not too long. */
const char *td__scan_shown(const char *name, char into[static 96])
{
    size_t n = 0;
    for (; name[n] && n < 80; n++)
        into[n] = (unsigned char)name[n] < 0x20 || name[n] == 0x7f ? '?' : name[n];
    strcpy(into + n, name[n] ? "…" : "");
    return into;
}

const char *td__scan_got(const td__scan *s, char into[static 32])
{
    unsigned char c = s->at < s->n ? (unsigned char)s->text[s->at] : 0;
    if (s->at >= s->n)
        snprintf(into, 32, "the %s's end", s->whole);
    else
        snprintf(into, 32, c > 0x20 && c < 0x7f ? "'%c'" : "byte 0x%02x", c);
    return into;
}

/* ---- cutting -------------------------------------------------------------------------------------------------------- */

void td__scan_space(td__scan *s)
{
    while (s->at < s->n && strchr(" \t\r\n", s->text[s->at]) && s->text[s->at])
        s->at++;
}

int td__scan_expect(td__scan *s, char wanted)
{
    char text[32];
    td__scan_space(s);
    if (s->at >= s->n || s->text[s->at] != wanted)
        return td__scan_bad(s, s->at, "expected '%c', got %s", wanted, td__scan_got(s, text));
    s->at++;
    return 0;
}

/* Leaves s->at behind the closing quote. */
static int string(td__scan *s, size_t room)
{
    char text[32];
    uint32_t begin = s->at;
    if (s->at >= s->n || s->text[s->at] != '"')
        return td__scan_bad(s, s->at, "expected a text in quotes, got %s", td__scan_got(s, text));
    for (s->at++; s->at < s->n; s->at++) {
        if (s->text[s->at] == '\\') {
            s->at++;
        } else if (s->text[s->at] == '"') {
            s->at++;
            return s->at - begin > room ? td__scan_bad(s, begin, "a text has %u bytes, at most %zu are expected", s->at - begin, room) : 0;
        }
    }
    return td__scan_bad(s, begin, "a text has no closing quote before the %s's end", s->whole);
}

/* Leaves s->at behind one value of any kind. Brackets are only counted: whether they match is the parser's matter. */
static int value(td__scan *s)
{
    char text[32];
    int depth = 0;
    do {
        td__scan_space(s);
        char c = s->at < s->n ? s->text[s->at] : '\0';
        if (s->at >= s->n || (depth == 0 && c && strchr("]},:", c)))
            return td__scan_bad(s, s->at, "expected a value, got %s", td__scan_got(s, text));
        if (c == '"') {
            if (string(s, TD__TEXT_ROOM) != 0)
                return TD_ERR_FORMAT;
        } else if (c == '{' || c == '[') {
            if (++depth > DEEPEST)
                return td__scan_bad(s, s->at, "brackets are nested more than %d deep", DEEPEST);
            s->at++;
        } else if (c == '}' || c == ']') {
            depth--;
            s->at++;
        } else if (c == ',' || c == ':') {
            s->at++;
        } else {
            while (s->at < s->n && !(s->text[s->at] && strchr(" \t\r\n,:[]{}\"", s->text[s->at])))
                s->at++;
        }
    } while (depth > 0);
    return 0;
}

/* The next member of an object whose opening bracket is behind s->at: 1, 0 at its end (s->at behind the bracket), or negative. */
int td__scan_member(td__scan *s, td__member *m, bool first, size_t room)
{
    td__scan_space(s);
    if (s->at < s->n && s->text[s->at] == '}') {
        s->at++;
        return 0;
    }
    int rc = first ? 0 : td__scan_expect(s, ',');
    td__scan_space(s);
    m->key = s->at;
    if (rc == 0)
        rc = string(s, room);
    m->key_length = s->at - m->key;
    if (rc == 0)
        rc = td__scan_expect(s, ':');
    td__scan_space(s);
    m->at = s->at;
    if (rc == 0)
        rc = value(s);
    m->length = s->at - m->at;
    return rc == 0 ? 1 : rc;
}

/* ---- parsing one piece ------------------------------------------------------------------------------------------------ */

json_t *td__scan_parse(const td__scan *s, uint32_t at, uint32_t length, size_t flags, const char *what)
{
    json_error_t error;
    json_t *json = json_loadb(s->text + at, length, flags, &error);
    if (!json) {
        char words[96];
        td__scan_bad(s, at, "%s is not valid JSON (in the parser's words: %s)", what, td__scan_shown(error.text, words));
    }
    return json;
}

/* The decoded text goes to *room, which moves on; NULL after td__fail. Never longer than what stands in the file. */
char *td__scan_decode(const td__scan *s, uint32_t at, uint32_t length, const char *what, char **room)
{
    json_t *json = td__scan_parse(s, at, length, JSON_DECODE_ANY, what);
    char *into = NULL;
    if (json && json_is_string(json)) {
        into = *room;
        size_t n = json_string_length(json);
        memcpy(into, json_string_value(json), n + 1);
        *room += n + 1;
    } else if (json) {
        td__scan_bad(s, at, "%s is no text, as it must be", what);
    }
    json_decref(json);
    return into;
}
