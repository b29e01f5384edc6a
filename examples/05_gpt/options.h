/* options.h: what the training program's command line says. */
#ifndef GPT_OPTIONS_H
#define GPT_OPTIONS_H
#include "model.h"

typedef struct {
    gpt_opts shape;
    const char *data, *valid, *load, *save, *resume, *log;
    td_tokens_kind kind;
    int64_t batch, accumulate, steps, stop, warmup, every, valid_every, valid_batches, save_every;
    double lr, decay, beta2, clip;
    bool capture;                              /* the step is recorded once and replayed                                 */
    td_dtype amp;                              /* TD_F32: none                                                          */
    uint64_t seed;
} options;
options options_parse(int argc, char **argv);  /* exits after --help or a wrong option                                  */
#endif
