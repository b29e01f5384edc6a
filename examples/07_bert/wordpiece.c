/* examples/07_bert/wordpiece.c: a vocabulary as a hash table of pieces, greedy longest match, and building one by counting words.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "wordpiece.h"

enum { LONGEST_WORD = 100, PIECE_ROOM = LONGEST_WORD + 3, ENDING = 4 };   /* BERT: longer words are [UNK] */
static const char *const special[] = { "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]" };
enum { PAD, UNK, CLS, SEP, MASK, SPECIALS };

/* ---- a table from text to number ------------------------------------------------------------------------------------------ */

typedef struct { char *text; int64_t value; } entry;
typedef struct { entry *list; int64_t n, room; int64_t *slot; size_t slots; } table;   /* slots: a power of two; -1: empty */

static void *must(void *memory)
{
    if (!memory)
        abort();
    return memory;
}

static size_t hash(const char *text, size_t length)
{
    uint64_t h = 14695981039346656037u;   /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        h = (h ^ (unsigned char)text[i]) * 1099511628211u;
    return (size_t)(h ^ h >> 32);
}

static int64_t *slot_of(const table *t, const char *text, size_t length)
{
    for (size_t i = hash(text, length);; i++) {
        int64_t *slot = &t->slot[i & (t->slots - 1)];
        if (*slot < 0 || (strncmp(t->list[*slot].text, text, length) == 0 && !t->list[*slot].text[length]))
            return slot;
    }
}

static int64_t find(const table *t, const char *text, size_t length)
{
    return t->slots ? *slot_of(t, text, length) : -1;
}

/* The number of the entry with this text, made with value 0 where there is none. */
static int64_t enter(table *t, const char *text, size_t length)
{
    if ((size_t)t->n * 2 >= t->slots) {
        t->slots = t->slots ? 2 * t->slots : 1024;
        t->slot = must(realloc(t->slot, t->slots * sizeof *t->slot));
        for (size_t i = 0; i < t->slots; i++)
            t->slot[i] = -1;
        for (int64_t i = 0; i < t->n; i++)
            *slot_of(t, t->list[i].text, strlen(t->list[i].text)) = i;
    }
    int64_t *slot = slot_of(t, text, length);
    if (*slot >= 0)
        return *slot;
    if (t->n == t->room) {
        t->room = t->room ? 2 * t->room : 512;
        t->list = must(realloc(t->list, (size_t)t->room * sizeof *t->list));
    }
    t->list[t->n] = (entry){ .text = must(strndup(text, length)) };
    return *slot = t->n++;
}

static void table_free(table *t)
{
    for (int64_t i = 0; i < t->n; i++)
        free(t->list[i].text);
    free(t->list);
    free(t->slot);
}

/* ---- vocabularies --------------------------------------------------------------------------------------------------------- */

struct wordpiece { table pieces; int64_t id[SPECIALS]; };

int64_t wordpiece_count(const wordpiece *w)
{
    return w->pieces.n;
}

const char *wordpiece_text(const wordpiece *w, int64_t id)
{
    return id >= 0 && id < w->pieces.n ? w->pieces.list[id].text : "";
}

int64_t wordpiece_id(const wordpiece *w, const char *piece)
{
    return find(&w->pieces, piece, strlen(piece));
}

void wordpiece_free(wordpiece *w)
{
    if (w)
        table_free(&w->pieces);
    free(w);
}

wordpiece *wordpiece_read(const char *path, char *why, size_t size)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return snprintf(why, size, "%s: %s", path, strerror(errno)), NULL;
    wordpiece *w = must(calloc(1, sizeof *w));
    char *line = NULL;
    size_t room = 0;
    int64_t lines = 0;
    bool good = true;
    for (ssize_t n; good && (n = getline(&line, &room, file)) >= 0; lines++) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            n--;
        if (memchr(line, 0, (size_t)n) || enter(&w->pieces, line, (size_t)n) != lines)
            good = (snprintf(why, size, "%s: line %lld %s", path, (long long)lines + 1,
                             memchr(line, 0, (size_t)n) ? "holds a zero byte" : "stands there twice"), false);
    }
    if (good && ferror(file))
        good = (snprintf(why, size, "%s: %s", path, strerror(errno)), false);
    free(line);
    fclose(file);
    for (int i = 0; good && i < SPECIALS; i++)
        if ((w->id[i] = wordpiece_id(w, special[i])) < 0)
            good = (snprintf(why, size, "%s: the piece %s is missing", path, special[i]), false);
    if (good)
        return w;
    wordpiece_free(w);
    return NULL;
}

bool wordpiece_write(const wordpiece *w, const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    for (int64_t i = 0; i < w->pieces.n; i++)
        fprintf(file, "%s\n", w->pieces.list[i].text);
    bool good = !ferror(file);
    return fclose(file) == 0 && good;
}

/* ---- words ---------------------------------------------------------------------------------------------------------------- */

/* The next word from *at: letters, or one punctuation mark; lower case, into `word`. Its length, 0 at the end; a longer word than
 * LONGEST_WORD gives LONGEST_WORD + 1. */
static size_t next_word(const char *text, size_t length, size_t *at, char word[LONGEST_WORD + 1])
{
    while (*at < length && (isspace((unsigned char)text[*at]) || !text[*at]))
        ++*at;
    size_t n = 0;
    for (; *at < length; ++*at) {
        unsigned char c = (unsigned char)text[*at];
        bool mark = c < 128 && ispunct(c);
        if (!c || isspace(c) || (mark && n > 0))
            break;
        if (n < LONGEST_WORD)
            word[n] = (char)(c < 128 ? tolower(c) : c);
        n += n <= LONGEST_WORD;
        if (mark) {
            ++*at;
            break;
        }
    }
    return n;
}

/* The longest piece that `word` begins with, inside a word with "##" in front; its id, or -1; *taken: its letters. */
static int64_t longest(const wordpiece *w, const char *word, size_t length, bool inside, size_t *taken)
{
    char piece[PIECE_ROOM];
    memcpy(piece, "##", 2);
    memcpy(piece + 2, word, length);
    const char *from = inside ? piece : piece + 2;
    for (size_t n = length; n > 0; n--) {
        int64_t id = find(&w->pieces, from, n + (inside ? 2 : 0));
        if (id >= 0)
            return *taken = n, id;
    }
    return -1;
}

/* Appends the pieces of one word; all of it is [UNK] when any part is not in the vocabulary. */
static int64_t encode_word(const wordpiece *w, const char *word, size_t length, int64_t *ids, int64_t used, int64_t room)
{
    int64_t begin = used;
    for (size_t at = 0, taken = 0; at < length && length <= LONGEST_WORD; at += taken) {
        int64_t id = longest(w, word + at, length - at, at > 0, &taken);
        if (id < 0) {
            used = begin;
            length = LONGEST_WORD + 1;
            break;
        }
        if (used < room)
            ids[used] = id;
        used++;
    }
    if (length > LONGEST_WORD) {
        if (used < room)
            ids[used] = w->id[UNK];
        used++;
    }
    return used < room ? used : room;
}

int64_t wordpiece_encode(const wordpiece *w, const char *text, size_t length, int64_t *ids, int64_t room)
{
    char word[LONGEST_WORD + 1];
    int64_t used = 0;
    ids[used++] = w->id[CLS];
    for (size_t at = 0, n; used < room - 1 && (n = next_word(text, length, &at, word)) > 0;)
        used = encode_word(w, word, n, ids, used, room - 1);
    ids[used++] = w->id[SEP];
    for (int64_t i = used; i < room; i++)
        ids[i] = w->id[PAD];
    return used;
}

/* ---- building ------------------------------------------------------------------------------------------------------------- */

static int commonest_first(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    return x->value != y->value ? (x->value < y->value) - (x->value > y->value) : strcmp(x->text, y->text);
}

static void add_piece(table *t, const char *text, size_t length, bool inside)
{
    char piece[PIECE_ROOM];
    memcpy(piece, "##", 2);
    memcpy(piece + 2, text, length);
    enter(t, inside ? piece : piece + 2, length + (inside ? 2 : 0));
}

static void sort(table *t)   /* its slots are of no use after this */
{
    qsort(t->list, (size_t)t->n, sizeof *t->list, commonest_first);
}

wordpiece *wordpiece_build(const char *text, size_t length, int64_t limit, char *why, size_t size)
{
    table words = { 0 }, endings = { 0 };
    char word[LONGEST_WORD + 1];
    for (size_t at = 0, n; (n = next_word(text, length, &at, word)) > 0;)
        if (n <= LONGEST_WORD) {
            int64_t i = enter(&words, word, n);   /* may move the list: first this, then the place in it */
            words.list[i].value++;
        }
    for (int64_t i = 0; i < words.n; i++) {       /* an ending counts once for each different word */
        size_t n = strlen(words.list[i].text);
        for (size_t k = 2; k <= ENDING && k < n; k++) {
            int64_t e = enter(&endings, words.list[i].text + n - k, k);
            endings.list[e].value++;
        }
    }
    wordpiece *w = must(calloc(1, sizeof *w));
    for (int i = 0; i < SPECIALS; i++)
        w->id[i] = enter(&w->pieces, special[i], strlen(special[i]));
    for (int c = 1; c < 256; c++) {
        char letter = (char)c;
        bool there = false;
        for (int64_t i = 0; i < words.n && !there; i++)
            there = strchr(words.list[i].text, letter) != NULL;
        if (there) {
            add_piece(&w->pieces, &letter, 1, false);
            add_piece(&w->pieces, &letter, 1, true);
        }
    }
    if (w->pieces.n > limit) {
        snprintf(why, size, "a vocabulary of %lld pieces is too small: this text has characters for %lld", (long long)limit,
                 (long long)w->pieces.n);
        wordpiece_free(w);
        w = NULL;
    } else {
        sort(&words);
        sort(&endings);
        int64_t shared = (limit - w->pieces.n) / 10;   /* a tenth of what is left for endings */
        for (int64_t i = 0; i < endings.n && i < shared; i++)
            add_piece(&w->pieces, endings.list[i].text, strlen(endings.list[i].text), true);
        for (int64_t i = 0; i < words.n && w->pieces.n < limit; i++)
            add_piece(&w->pieces, words.list[i].text, strlen(words.list[i].text), false);
    }
    table_free(&words);
    table_free(&endings);
    return w;
}
