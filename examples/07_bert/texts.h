/* examples/07_bert/texts.h: labelled texts, one a line: the label, a tab, the text. Labels are numbered in the order of strcmp.
 */
#ifndef BERT_TEXTS_H
#define BERT_TEXTS_H
#include <tandem.h>
#include "wordpiece.h"

typedef struct texts texts;

/* NULL after a sentence in why. labels: NULL, or the file whose labels count (one that is unknown there is refused). */
texts      *texts_read(const char *path, const texts *labels, char *why, size_t size);
void        texts_free(texts *t);                            /* NULL is fine; data sets made of it live on                */
int64_t     texts_rows(const texts *t);
int64_t     texts_classes(const texts *t);
const char *texts_class(const texts *t, int64_t i);
double      texts_majority(const texts *t, const texts *of);  /* share of t's rows that have the commonest label of `of`    */
const char *texts_all(const texts *t, size_t *length);       /* the texts alone, one a line: for wordpiece_build           */

/* Fields: ids i64 (length), label i64 (), tokens i64 (): how many ids are no padding. */
td_dataset *texts_dataset(const texts *t, const wordpiece *w, int64_t length);
#endif
