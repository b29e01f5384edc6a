/* examples/07_bert/wordpiece.h: text to token ids as BERT's uncased models do it: lower case, split at spaces and around punctuation,
 * then each word into the longest pieces that the vocabulary has; pieces inside a word begin with "##".
 *
 * A vocabulary is a file of one piece a line, its id the line's number from 0 (Hugging Face's vocab.txt), or is built from a text.
 * Bytes beyond ASCII are kept as they are: no accents are stripped, as in a "cased" treatment of those letters.
 */
#ifndef BERT_WORDPIECE_H
#define BERT_WORDPIECE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct wordpiece wordpiece;

/* NULL after a sentence in why (size bytes). A vocabulary needs [PAD] (id of padding), [UNK], [CLS], [SEP] and [MASK]. */
wordpiece  *wordpiece_read(const char *path, char *why, size_t size);
/* At most `limit` pieces from the text: the five above, every character alone and inside words (so that nothing of this text is
 * unknown), endings of up to four letters that many words share, then the commonest words. limit holds at least what comes before words. */
wordpiece  *wordpiece_build(const char *text, size_t length, int64_t limit, char *why, size_t size);
bool        wordpiece_write(const wordpiece *w, const char *path);      /* false: errno says why                          */
void        wordpiece_free(wordpiece *w);                               /* NULL is fine                                  */

int64_t     wordpiece_count(const wordpiece *w);
const char *wordpiece_text(const wordpiece *w, int64_t id);             /* "" outside                                    */
int64_t     wordpiece_id(const wordpiece *w, const char *piece);        /* -1: not there                                 */

/* [CLS] pieces [SEP], cut to `room` ids (2 or more) and padded to it with [PAD]. Returns how many are no padding. */
int64_t     wordpiece_encode(const wordpiece *w, const char *text, size_t length, int64_t *ids, int64_t room);
#endif
