/* examples/07_bert/folder.c: Hugging Face's folders: config.json, and the names of model.safetensors.
 *
 * Files differ in what stands in front: BertModel's names begin with "embeddings.", those of models around it with "bert.embeddings.", while
 * their own heads ("classifier.", "cls.") have nothing in front.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jansson.h>
#include "model.h"

/* ---- config.json -------------------------------------------------------------------------------------------------------- */

typedef struct { const char *path; char *why; size_t size; } report;

static bool refuse(const report *r, const char *format, const char *key, const char *value)
{
    int n = snprintf(r->why, r->size, "%s: ", r->path);
    if (n >= 0 && (size_t)n < r->size)
        snprintf(r->why + n, r->size - (size_t)n, format, key, value);
    return false;
}

/* Absent or null: *into stays. */
static bool whole(const report *r, const json_t *root, const char *key, int64_t *into)
{
    const json_t *v = json_object_get(root, key);
    if (!v || json_is_null(v))
        return true;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > 1 << 30)
        return refuse(r, "\"%s\" is no whole number from 0 to 2^30%s", key, "");
    *into = json_integer_value(v);
    return true;
}

static bool size_of(const report *r, const json_t *root, const char *key, int64_t *into)
{
    return whole(r, root, key, into) && (*into > 0 || refuse(r, "\"%s\" is 0%s", key, ", expected 1 or more"));
}

static bool real(const report *r, const json_t *root, const char *key, double *into)
{
    const json_t *v = json_object_get(root, key);
    if (!v || json_is_null(v))
        return true;
    if (!json_is_number(v) || json_number_value(v) < 0)
        return refuse(r, "\"%s\" is no number of 0 or more%s", key, "");
    *into = json_number_value(v);
    return true;
}

static bool is_off(const report *r, const json_t *root, const char *key)
{
    return !json_is_true(json_object_get(root, key)) || refuse(r, "\"%s\" is true: %s", key, "this program has encoders only");
}

static const char *text(const json_t *root, const char *key, const char *absent)
{
    const char *value = json_string_value(json_object_get(root, key));
    return value ? value : absent;
}

static bool read_activation(const report *r, const json_t *root, bert_activation *into)
{
    const char *name = text(root, "hidden_act", "gelu");
    if (strcmp(name, "gelu") == 0)
        *into = BERT_GELU;
    else if (strcmp(name, "gelu_new") == 0 || strcmp(name, "gelu_pytorch_tanh") == 0)
        *into = BERT_GELU_TANH;
    else if (strcmp(name, "relu") == 0)
        *into = BERT_RELU;
    else
        return refuse(r, "\"%s\" is \"%.40s\", expected gelu, gelu_new, gelu_pytorch_tanh or relu", "hidden_act", name);
    return true;
}

static bool read_fields(const report *r, const json_t *root, bert_opts *o)
{
    if (!json_is_object(root))
        return refuse(r, "%sno object%s", "", "");
    if (strcmp(text(root, "model_type", "bert"), "bert") != 0)
        return refuse(r, "\"%s\" is \"%.40s\", expected \"bert\"", "model_type", text(root, "model_type", ""));
    if (strcmp(text(root, "position_embedding_type", "absolute"), "absolute") != 0)
        return refuse(r, "\"%s\" is \"%.40s\", expected \"absolute\"", "position_embedding_type", text(root, "position_embedding_type", ""));
    o->vocab = 30522, o->hidden = 768, o->layers = 12, o->heads = 12, o->intermediate = 3072, o->positions = 512, o->types = 2;
    o->pad = 0, o->dropout = 0.1, o->eps = 1e-12, o->init = 0.02;
    json_t *pad = json_object_get(root, "pad_token_id");
    if (!(is_off(r, root, "is_decoder") && is_off(r, root, "add_cross_attention") && read_activation(r, root, &o->activation) &&
          size_of(r, root, "vocab_size", &o->vocab) && size_of(r, root, "hidden_size", &o->hidden) &&
          size_of(r, root, "num_hidden_layers", &o->layers) && size_of(r, root, "num_attention_heads", &o->heads) &&
          size_of(r, root, "intermediate_size", &o->intermediate) && size_of(r, root, "max_position_embeddings", &o->positions) &&
          size_of(r, root, "type_vocab_size", &o->types) && whole(r, root, "pad_token_id", &o->pad) &&
          real(r, root, "hidden_dropout_prob", &o->dropout) && real(r, root, "layer_norm_eps", &o->eps) &&
          real(r, root, "initializer_range", &o->init)))
        return false;
    if (json_is_null(pad))
        o->pad = -1;
    if (o->dropout >= 1)
        return refuse(r, "\"%s\" is 1 or more, expected %s", "hidden_dropout_prob", "less");
    if (o->pad >= o->vocab)
        return refuse(r, "\"%s\" is not below \"%s\"", "pad_token_id", "vocab_size");
    return o->hidden % o->heads == 0 || refuse(r, "\"%s\" does not divide \"%s\"", "num_attention_heads", "hidden_size");
}

bool bert_config_read(const char *path, bert_opts *opts, char *why, size_t size)
{
    report r = { path, why, size };
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return refuse(&r, "%s%s", error.text, "");
    bert_opts o = *opts;
    bool good = read_fields(&r, root, &o);
    json_decref(root);
    if (good)
        *opts = o;
    return good;
}

/* A configuration holds no number of classes: transformers counts these names. */
static json_t *label_names(int64_t classes)
{
    json_t *names = json_object();
    char number[24], name[40];
    for (int64_t c = 0; c < classes; c++) {
        snprintf(number, sizeof number, "%lld", (long long)c);
        snprintf(name, sizeof name, "LABEL_%lld", (long long)c);
        json_object_set_new(names, number, json_string(name));
    }
    return names;
}

bool bert_config_write(const char *path, const bert *b, char *why, size_t size)
{
    static const char *const act[] = { [BERT_GELU] = "gelu", [BERT_GELU_TANH] = "gelu_new", [BERT_RELU] = "relu" };
    const bert_opts *o = &b->opts;
    json_t *architectures = json_pack("[s]", o->classes ? "BertForSequenceClassification" : o->masked_lm ? "BertForMaskedLM" : "BertModel");
    json_t *root = json_pack("{s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:s}", "architectures", architectures, "model_type", "bert",
                             "vocab_size", (json_int_t)o->vocab, "hidden_size", (json_int_t)o->hidden, "num_hidden_layers",
                             (json_int_t)o->layers, "num_attention_heads", (json_int_t)o->heads, "intermediate_size",
                             (json_int_t)o->intermediate, "max_position_embeddings", (json_int_t)o->positions, "type_vocab_size",
                             (json_int_t)o->types, "hidden_dropout_prob", o->dropout, "attention_probs_dropout_prob", 0.0,
                             "layer_norm_eps", o->eps, "initializer_range", o->init, "hidden_act", act[o->activation]);
    json_t *pad = o->pad >= 0 ? json_integer(o->pad) : json_null();
    bool good = root && json_object_set_new(root, "pad_token_id", pad) == 0;
    if (good && o->classes)
        good = json_object_set_new(root, "id2label", label_names(o->classes)) == 0;
    errno = 0;
    good = good && json_dump_file(root, path, JSON_INDENT(2)) == 0;
    json_decref(root);
    if (!good)
        snprintf(why, size, "%s: %s", path, errno ? strerror(errno) : "cannot be written");
    return good;
}

/* ---- model.safetensors ---------------------------------------------------------------------------------------------------- */

/* The name under which the file has the parameter, in `into`; false: it has none. */
static bool find(const td_safetensors *file, const char *name, char *into, size_t size)
{
    static const char *const front[] = { "", "bert." };
    const char *last = strrchr(name, '.') + 1;
    bool of_norm = strstr(name, "LayerNorm.") != NULL;
    const char *old = strcmp(last, "weight") == 0 ? "gamma" : "beta";
    for (size_t f = 0; f < 2; f++) {
        snprintf(into, size, "%s%s", front[f], name);
        if (td_safetensors_has(file, into))
            return true;
        if (!of_norm)
            continue;
        snprintf(into, size, "%s%.*s%s", front[f], (int)(last - name), name, old);
        if (td_safetensors_has(file, into))
            return true;
    }
    return false;
}

static bool is_float(td_dtype dtype)
{
    return dtype == TD_F32 || dtype == TD_F64 || dtype == TD_F16 || dtype == TD_BF16;
}

static bool same_shape(td_shape a, td_shape b)
{
    bool same = a.ndim == b.ndim;
    for (int i = 0; same && i < a.ndim; i++)
        same = a.dim[i] == b.dim[i];
    return same;
}

static void shape_text(td_shape shape, char *into, size_t size)   /* "(2,3)" */
{
    size_t used = (size_t)snprintf(into, size, "(");
    for (int i = 0; i < shape.ndim && used < size; i++)
        used += (size_t)snprintf(into + used, size - used, "%s%lld", i ? "," : "", (long long)shape.dim[i]);
    if (used < size)
        snprintf(into + used, size - used, ")");
}

/* The part of the model that a file may lack: its name, or NULL. */
static const char *optional_part(const char *name)
{
    static const char *const parts[] = { "pooler", "classifier", "cls" };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strncmp(name, parts[i], strlen(parts[i])) == 0 && name[strlen(parts[i])] == '.')
            return parts[i];
    return NULL;
}

/* Does the file fit parameter p? Parts that are not there are added to `absent`. */
static bool fits(td_safetensors *file, const char *path, td_tensor *p, char *absent, size_t absent_size, char *why, size_t size)
{
    char name[512];
    const char *own = td_parameter_name(p), *part = optional_part(own);
    if (!find(file, own, name, sizeof name)) {
        if (!part)
            return snprintf(why, size, "%s: the tensor \"%s\" is missing", path, own), false;
        size_t used = strlen(absent);
        if (!strstr(absent, part))
            snprintf(absent + used, absent_size - used, "%s%s", used ? ", " : "", part);
        return true;
    }
    td_tensor *x = td_safetensors_get(file, name);
    if (!same_shape(td_shape_of(x), td_shape_of(p)) || !is_float(td_dtype_of(x))) {
        char have[160], want[160];
        shape_text(td_shape_of(x), have, sizeof have);
        shape_text(td_shape_of(p), want, sizeof want);
        return snprintf(why, size, "%s: \"%s\" is %s %s, expected floats %s", path, name, td_dtype_name(td_dtype_of(x)), have, want), false;
    }
    return true;
}

bool bert_load(bert *b, const char *path, char *why, size_t size)
{
    TD_SCOPE();
    TD_NO_GRAD();
    char absent[64] = "", name[512];
    td_safetensors *file = td_safetensors_open(path);
    if (td_error_pending())
        return snprintf(why, size, "%s", td_error_message()), false;
    td_tensors p = td_parameters(&b->base);
    bool good = true;
    for (size_t i = 0; i < p.n && good; i++)      /* first all of it is looked at, then copied */
        good = fits(file, path, p.list[i], absent, sizeof absent, why, size);
    for (size_t i = 0; i < p.n && good; i++)
        if (find(file, td_parameter_name(p.list[i]), name, sizeof name))
            td_assign(p.list[i], td_safetensors_get(file, name));
    td_safetensors_free(file);
    if (good)
        snprintf(why, size, "%s", absent);
    return good && !td_error_pending();
}
