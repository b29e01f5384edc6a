/* examples/07_bert/options.h: the command line of `bert`.
 */
#ifndef BERT_OPTIONS_H
#define BERT_OPTIONS_H
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *data, *model, *save, *resume, *export, *log;
    bool masked, freeze, pad, capture;
    int64_t vocab, layers, width, heads, length, epochs, batch, steps, warmup;
    double lr, decay, clip, dropout;              /* dropout -1: the folder's, or 0.1                                    */
    uint64_t seed;
} options;

/* Ends the program with a sentence where the arguments are wrong (2), and after --help (0). */
options options_parse(int argc, char **argv);
#endif
