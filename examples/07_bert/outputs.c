/* examples/07_bert/outputs.c: what a BERT of Hugging Face's makes of given token ids, as a file.
 *
 *     ./bert_outputs FOLDER INPUTS OUTPUTS [--f64]
 *
 * FOLDER has config.json and model.safetensors. INPUTS is a safetensors file: input_ids (N,T) i64, and perhaps token_type_ids i64 and
 * attention_mask bool (true: a real token), both (N,T). OUTPUTS becomes one with last_hidden_state (N,T,hidden), pooler_output
 * (N,hidden) and, where the model file has a classifier, logits (N,classes). --f64 computes in double precision.
 */
#include <stdio.h>
#include <string.h>
#include "model.h"

static td_tensor *input(td_safetensors *file, const char *name)
{
    return td_safetensors_has(file, name) ? td_safetensors_get(file, name) : NULL;
}

/* The rows of the classifier in the model's file; 0: none. */
static int64_t classes_in(const char *path)
{
    TD_SCOPE();
    td_safetensors *file = td_safetensors_open(path);
    int64_t classes = td_safetensors_has(file, "classifier.bias") ? td_dim(td_safetensors_get(file, "classifier.bias"), 0) : 0;
    td_safetensors_free(file);
    return classes;
}

static int run(const char *folder, const char *from, const char *into, bool f64)
{
    char path[4096], why[1024];
    snprintf(path, sizeof path, "%s/config.json", folder);
    bert_opts opts = { 0 };
    if (!bert_config_read(path, &opts, why, sizeof why))
        return fprintf(stderr, "bert_outputs: %s\n", why), 1;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    opts.classes = classes_in(path);
    bert *b = bert_new(&opts);
    if (f64)
        td_module_to(&b->base, TD_F64);
    if (!bert_load(b, path, why, sizeof why) || *why)
        return fprintf(stderr, "bert_outputs: %s%s\n", why, td_error_pending() || strchr(why, ' ') ? "" : " is not in the file"), 1;
    td_train(&b->base, false);

    TD_SCOPE();
    TD_NO_GRAD();
    td_safetensors *file = td_safetensors_open(from);
    td_tensor *pooled;
    td_tensor *hidden = bert_forward(b, td_safetensors_get(file, "input_ids"), input(file, "token_type_ids"), input(file, "attention_mask"), &pooled);
    td_named out[3] = { { "last_hidden_state", hidden }, { "pooler_output", pooled } };
    size_t n = 2;
    if (opts.classes)
        out[n++] = (td_named){ "logits", bert_classify(b, pooled) };
    td_safetensors_free(file);
    return td_safetensors_save(into, out, n, NULL, 0) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    bool f64 = argc == 5 && strcmp(argv[4], "--f64") == 0;
    if (argc != 4 && !f64)
        return fprintf(stderr, "usage: bert_outputs FOLDER INPUTS OUTPUTS [--f64]\n"), 2;
    td_init(&argc, &argv);
    int failed = run(argv[1], argv[2], argv[3], f64);
    int status = td_finish();
    return status ? status : failed;
}
