/* weights.c: files of weights, this program's and Hugging Face's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"

static const char prefix[] = "transformer.";

/* The file's own name for a parameter: as it is, or with the prefix. false: it has neither. */
static bool name_in(const td_safetensors *file, const char *name, char *into, size_t size)
{
    snprintf(into, size, "%s", name);
    if (td_safetensors_has(file, into))
        return true;
    snprintf(into, size, "%s%s", prefix, name);
    return td_safetensors_has(file, into);
}

/* The causal masks that old files hold as buffers: h.0.attn.bias, h.0.attn.masked_bias */
static bool is_mask(const char *name)
{
    long long layer;
    int end = 0;
    sscanf(name, "h.%lld.attn.%n", &layer, &end);
    return end > 0 && (strcmp(name + end, "bias") == 0 || strcmp(name + end, "masked_bias") == 0);
}

static bool same_shape(td_shape a, td_shape b)
{
    bool same = a.ndim == b.ndim;
    for (int i = 0; same && i < a.ndim; i++)
        same = a.dim[i] == b.dim[i];
    return same;
}

static int refuse(const char *path, const char *name, const char *why)
{
    if (td_error_pending())
        return td_error_pending();
    td_log("gpt_load: %s: %s %s", path, name, why);
    return TD_ERR_FORMAT;
}

/* Does every tensor of the file belong to the model? */
static int check_names(gpt *net, td_safetensors *file, const char *path)
{
    char other[256];
    td_tensors all = td_parameters(&net->base);
    for (size_t i = 0; i < td_safetensors_count(file); i++) {
        const char *name = td_safetensors_name(file, i), *bare = strncmp(name, prefix, sizeof prefix - 1) ? name : name + sizeof prefix - 1;
        bool known = is_mask(bare);
        for (size_t k = 0; k < all.n && !known; k++)
            known = strcmp(bare, td_parameter_name(all.list[k])) == 0;
        if (strcmp(bare, "lm_head.weight") == 0 && name_in(file, "wte.weight", other, sizeof other)) {
            td_tensor *head = td_safetensors_get(file, name), *table = td_safetensors_get(file, other);
            known = same_shape(td_shape_of(head), td_shape_of(table)) && td_dtype_of(head) == td_dtype_of(table);
            if (known) {
                td_tensor *differ = td_shift(td_scale(td_cast(td_eq(head, table), TD_F32), -1), 1);
                known = td_item(td_amax(differ, NULL, 0, false)) == 0;
            }
            if (!known)
                return refuse(path, name, "is not wte.weight, but this model's head is tied to it");
        }
        if (!known)
            return refuse(path, name, "is no part of this model");
    }
    return 0;
}

int gpt_load(gpt *net, const char *path)
{
    TD_SCOPE();
    TD_NO_GRAD();
    char name[256];
    td_safetensors *file = td_safetensors_open(path);
    td_tensors all = td_parameters(&net->base);
    int rc = td_error_pending() ? td_error_pending() : check_names(net, file, path);
    for (int pass = 0; pass < 2; pass++)       /* everything is compared before anything is written */
        for (size_t i = 0; i < all.n && rc == 0; i++) {
            const char *own = td_parameter_name(all.list[i]);
            if (!name_in(file, own, name, sizeof name))
                rc = refuse(path, own, "is missing");
            td_tensor *x = rc == 0 ? td_safetensors_get(file, name) : NULL;
            if (rc == 0 && !same_shape(td_shape_of(x), td_shape_of(all.list[i])))
                rc = refuse(path, name, "has another shape than the model's");
            if (rc == 0 && pass == 1)
                rc = td_assign(all.list[i], td_to(x, td_device_of(all.list[i])));
        }
    td_safetensors_free(file);
    return rc;
}

int gpt_save(gpt *net, const char *path)
{
    char heads[24];
    td_tensors all = td_parameters(&net->base);
    td_named *list = malloc(all.n * sizeof *list);
    if (!list)
        return TD_ERR_MEMORY;
    for (size_t i = 0; i < all.n; i++)
        list[i] = (td_named){ td_parameter_name(all.list[i]), all.list[i] };
    snprintf(heads, sizeof heads, "%lld", (long long)net->opts.heads);
    int rc = td_safetensors_save(path, list, all.n, (const td_text_pair[]){ { "format", "pt" }, { "n_head", heads } }, 2);
    free(list);
    return rc;
}

int gpt_shape_of(const char *path, gpt_opts *opts)
{
    TD_SCOPE();
    char tokens[256], places[256], own[64], block[256];
    td_safetensors *file = td_safetensors_open(path);
    int rc = td_error_pending();
    if (rc == 0 && (!name_in(file, "wte.weight", tokens, sizeof tokens) || !name_in(file, "wpe.weight", places, sizeof places)))
        rc = refuse(path, "wte.weight or wpe.weight", "is missing: it is no GPT-2");
    if (rc == 0) {
        td_shape t = td_shape_of(td_safetensors_get(file, tokens)), p = td_shape_of(td_safetensors_get(file, places));
        if (td_error_pending() || t.ndim != 2 || p.ndim != 2)
            rc = refuse(path, tokens, "or wpe.weight is no matrix");
        opts->vocab = t.dim[0], opts->width = t.dim[1], opts->context = p.dim[0];
        for (opts->layers = 0; rc == 0; opts->layers++) {
            snprintf(own, sizeof own, "h.%lld.ln_1.weight", (long long)opts->layers);
            if (!name_in(file, own, block, sizeof block))
                break;
        }
        const char *heads = rc == 0 ? td_safetensors_metadata(file, "n_head") : NULL;
        if (heads)
            opts->heads = atoll(heads);
        if (rc == 0 && opts->layers == 0)
            rc = refuse(path, "h.0.ln_1.weight", "is missing: it has no block");
    }
    td_safetensors_free(file);
    return rc;
}
