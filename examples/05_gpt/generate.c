/* generate.c: goes on with a text, or with token ids, from saved weights.
 *
 *     ./gpt_generate --load gpt.safetensors --prompt "In the beginning" --count 200 --temperature 0.8 --top-k 40
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../numbers.h"
#include "model.h"

static const char help[] = "gpt_generate: goes on with a text (models of 256 bytes) or with token ids (all others)\n"
                           "\n"
                           "  --load FILE        weights, train's or Hugging Face's safetensors; their shape is read from them\n"
                           "  --heads N          where the file does not say it; default width/64\n"
                           "  --prompt TEXT      or ids with blanks between: \"464 3290\"; default a line feed, or 0\n"
                           "  --count N          tokens; default 200\n"
                           "  --temperature X    default 1; 0: always the most likely token\n"
                           "  --top-k N          only the N most likely tokens; default all\n"
                           "  --seed N           the same seed, the same text; default 0\n";

typedef struct { const char *load, *prompt; int64_t heads, count; gpt_sampling how; uint64_t seed; } options;

static options parse(int argc, char **argv)
{
    static const struct option known[] = {
        { "load", required_argument, NULL, 'l' },        { "heads", required_argument, NULL, 'e' }, { "prompt", required_argument, NULL, 'p' },
        { "count", required_argument, NULL, 'c' },       { "top-k", required_argument, NULL, 'k' }, { "seed", required_argument, NULL, 's' },
        { "temperature", required_argument, NULL, 't' }, { "help", no_argument, NULL, 'h' },        { NULL, 0, NULL, 0 },
    };
    options o = { .count = 200 };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'l': o.load = optarg; break;
        case 'e': o.heads = whole_number(optarg); break;
        case 'p': o.prompt = optarg; break;
        case 'c': o.count = whole_number(optarg); break;
        case 'k': o.how.top_k = whole_number(optarg); break;
        case 's': o.seed = (uint64_t)whole_number(optarg); break;
        case 't': o.how.temperature = real_number(optarg) > 0 ? real_number(optarg) : -1; break;
        case 'h': fputs(help, stdout); exit(0);
        default: exit(2);
        }
    }
    if (!o.load || o.count < 0 || o.how.top_k < 0 || o.heads < 0) {
        fputs(o.load ? "gpt_generate: --count, --top-k and --heads are 0 or more\n" : "gpt_generate: --load says which weights\n", stderr);
        exit(2);
    }
    return o;
}

/* The prompt as ids: its bytes, or the numbers in it. At least one. */
static int64_t read_prompt(const options *o, bool bytes, int64_t vocab, int64_t *ids)
{
    int64_t n = 0;
    const char *p = o->prompt && *o->prompt ? o->prompt : bytes ? "\n" : "0";
    if (bytes)
        for (; *p; p++)
            ids[n++] = (unsigned char)*p;
    for (char *end; !bytes && *p; p = end) {
        ids[n] = strtoll(p, &end, 10);
        if (end == p || ids[n] < 0 || ids[n] >= vocab) {
            fprintf(stderr, "gpt_generate: --prompt at \"%s\": expected ids from 0 to %lld\n", p, (long long)vocab - 1);
            exit(2);
        }
        n++;
        end += strspn(end, " ,\n\t");
    }
    return n;
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    options o = parse(argc, argv);
    gpt_opts shape = { 0 };
    if (gpt_shape_of(o.load, &shape) != 0)
        return td_finish(), 2;
    shape.heads = o.heads ? o.heads : shape.heads;
    gpt *net = gpt_new(&shape);
    if (!net || gpt_load(net, o.load) != 0)
        return td_finish(), 2;
    td_train(&net->base, false);
    bool bytes = shape.vocab == 256;
    int64_t *ids = malloc(((o.prompt ? strlen(o.prompt) : 0) + 1) * sizeof *ids), *out = malloc((size_t)(o.count + 1) * sizeof *out);
    if (!ids || !out)
        return td_finish(), 1;
    int64_t n = read_prompt(&o, bytes, shape.vocab, ids);
    int rc = gpt_generate(net, ids, n, out, o.count, &o.how, o.seed);
    if (rc == 0 && td_rank(td_world()) == 0) {
        for (int64_t i = -n; i < o.count; i++) {
            int64_t id = i < 0 ? ids[n + i] : out[i];
            if (bytes)
                putchar((int)id);
            else
                printf("%lld ", (long long)id);
        }
        putchar('\n');
    }
    free(ids);
    free(out);
    return td_finish();
}
