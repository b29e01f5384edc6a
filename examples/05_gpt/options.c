/* options.c: the training program's command line. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "options.h"

static const char help[] =
    "gpt: trains a GPT-2 on bytes of a text or on token ids\n"
    "\n"
    "  --data PATH       text, or .bin shards of token ids (a pattern in quotes); default bible-train.txt\n"
    "  --valid PATH      for the validation loss; default bible-valid.txt with the default --data, else the last tenth of --data\n"
    "  --u32             .bin shards without a header hold 32-bit ids (default: 16)\n"
    "shape\n"
    "  --model NAME      124M, 355M, 774M, 1558M, small (default) or tiny; the next five change it\n"
    "  --layers N  --heads N  --width N  --context N  --vocab N\n"
    "  --dropout P       default 0\n"
    "  --load FILE       begin with these weights and their shape (this program's, or Hugging Face's safetensors)\n"
    "training\n"
    "  --batch N         rows per rank and micro-batch; default 8     --accumulate N  micro-batches per step; default 1\n"
    "  --steps N         optimizer steps; default 500                 --stop N        end after step N, as if interrupted\n"
    "  --lr X            peak rate; default 1e-3                      --warmup N      steps; default steps/20\n"
    "  --decay X         of matrices and tables; default 0.1          --beta2 X       default 0.95\n"
    "  --clip X          global norm; default 1; 0: none              --seed N        default 0\n"
    "  --amp bf16|f16    mixed precision                              --checkpointing compute blocks twice, keep less\n"
    "  --capture         record the step once and replay it; not with --amp f16 or --checkpointing\n"
    "reports and files\n"
    "  --every N         steps between lines; default 10              --log FILE      step and loss of every step\n"
    "  --valid-every N   steps; default 100; 0: at the end only       --valid-batches N  per rank; default 20\n"
    "  --save FILE       weights at the end, and FILE.state to go on  --save-every N  FILE.state every N steps\n"
    "  --resume FILE     go on from a .state file; give the same other options\n";

static int64_t whole(const char *name, const char *text, int64_t least)
{
    char *end;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || v < least) {
        fprintf(stderr, "gpt: --%s is \"%s\", expected a whole number of %lld or more\n", name, text, (long long)least);
        exit(2);
    }
    return v;
}

static double number(const char *name, const char *text)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= 0)) {
        fprintf(stderr, "gpt: --%s is \"%s\", expected a number of 0 or more\n", name, text);
        exit(2);
    }
    return v;
}

static void wrong(const char *name, const char *text, const char *expected)
{
    fprintf(stderr, "gpt: --%s is \"%s\", expected %s\n", name, text, expected);
    exit(2);
}

static bool is_bin(const char *path)
{
    size_t n = strlen(path);
    return n > 4 && strcmp(path + n - 4, ".bin") == 0;
}

enum { DATA = 1, VALID, U32, MODEL, LAYERS, HEADS, WIDTH, CONTEXT, VOCAB, DROPOUT, LOAD, BATCH, ACCUMULATE, STEPS, STOP, LR,
       WARMUP, DECAY, BETA2, CLIP, SEED, AMP, CHECKPOINTING, EVERY, LOG, VALID_EVERY, VALID_BATCHES, SAVE, SAVE_EVERY, RESUME, CAPTURE, HELP };

options options_parse(int argc, char **argv)
{
#define TAKES(name, id) { name, required_argument, NULL, id }
    static const struct option known[] = {
        TAKES("data", DATA), TAKES("valid", VALID), { "u32", no_argument, NULL, U32 }, TAKES("model", MODEL), TAKES("layers", LAYERS),
        TAKES("heads", HEADS), TAKES("width", WIDTH), TAKES("context", CONTEXT), TAKES("vocab", VOCAB), TAKES("dropout", DROPOUT),
        TAKES("load", LOAD), TAKES("batch", BATCH), TAKES("accumulate", ACCUMULATE), TAKES("steps", STEPS), TAKES("stop", STOP), TAKES("lr", LR),
        TAKES("warmup", WARMUP), TAKES("decay", DECAY), TAKES("beta2", BETA2), TAKES("clip", CLIP), TAKES("seed", SEED), TAKES("amp", AMP),
        { "checkpointing", no_argument, NULL, CHECKPOINTING }, TAKES("every", EVERY), TAKES("log", LOG), TAKES("valid-every", VALID_EVERY),
        TAKES("valid-batches", VALID_BATCHES), TAKES("save", SAVE), TAKES("save-every", SAVE_EVERY), TAKES("resume", RESUME),
        { "capture", no_argument, NULL, CAPTURE },
        { "help", no_argument, NULL, HELP }, { NULL, 0, NULL, 0 },
    };
    options o = { .batch = 8, .accumulate = 1, .steps = 500, .warmup = -1, .lr = 1e-3, .decay = 0.1, .beta2 = 0.95, .clip = 1, .every = 10,
                  .valid_every = 100, .valid_batches = 20, .amp = TD_F32 };
    gpt_opts s = { 0 };                        /* what the command line says of the shape                               */
    const char *model = "small";
    for (int c, at; (c = getopt_long(argc, argv, "", known, &at)) != -1;) {
        const char *name = c == '?' ? "" : known[at].name;
        switch (c) {
        case DATA: o.data = optarg; break;
        case VALID: o.valid = optarg; break;
        case U32: o.kind = TD_TOKENS_U32; break;
        case MODEL: model = optarg; break;
        case LAYERS: s.layers = whole(name, optarg, 1); break;
        case HEADS: s.heads = whole(name, optarg, 1); break;
        case WIDTH: s.width = whole(name, optarg, 1); break;
        case CONTEXT: s.context = whole(name, optarg, 1); break;
        case VOCAB: s.vocab = whole(name, optarg, 1); break;
        case DROPOUT: s.dropout = number(name, optarg); break;
        case LOAD: o.load = optarg; break;
        case BATCH: o.batch = whole(name, optarg, 1); break;
        case ACCUMULATE: o.accumulate = whole(name, optarg, 1); break;
        case STEPS: o.steps = whole(name, optarg, 1); break;
        case STOP: o.stop = whole(name, optarg, 1); break;
        case LR: o.lr = number(name, optarg); break;
        case WARMUP: o.warmup = whole(name, optarg, 0); break;
        case DECAY: o.decay = number(name, optarg); break;
        case BETA2: o.beta2 = number(name, optarg); break;
        case CLIP: o.clip = number(name, optarg); break;
        case SEED: o.seed = (uint64_t)whole(name, optarg, 0); break;
        case AMP:
            o.amp = strcmp(optarg, "bf16") == 0 ? TD_BF16 : TD_F16;
            if (strcmp(optarg, "bf16") != 0 && strcmp(optarg, "f16") != 0)
                wrong(name, optarg, "bf16 or f16");
            break;
        case CHECKPOINTING: s.checkpointing = true; break;
        case EVERY: o.every = whole(name, optarg, 1); break;
        case LOG: o.log = optarg; break;
        case VALID_EVERY: o.valid_every = whole(name, optarg, 0); break;
        case VALID_BATCHES: o.valid_batches = whole(name, optarg, 1); break;
        case SAVE: o.save = optarg; break;
        case SAVE_EVERY: o.save_every = whole(name, optarg, 1); break;
        case RESUME: o.resume = optarg; break;
        case CAPTURE: o.capture = true; break;
        case HELP: fputs(help, stdout); exit(0);
        default: fputs("gpt: --help lists the options\n", stderr); exit(2);
        }
    }
    if (o.capture && (o.amp == TD_F16 || s.checkpointing)) {   /* what would be replayed is not decided beforehand       */
        fputs("gpt: --capture goes with neither --amp f16 (the host decides on each step) nor --checkpointing (a function is called again)\n", stderr);
        exit(2);
    }
    if (optind < argc)
        wrong("", argv[optind], "no further words");
    if (!gpt_preset(model, &o.shape))
        wrong("model", model, "124M, 355M, 774M, 1558M, small or tiny");
    if (!o.data) {
        o.data = "bible-train.txt";
        o.valid = o.valid ? o.valid : "bible-valid.txt";
    }
    o.shape.vocab = is_bin(o.data) ? 50257 : 256;
    if (o.load && gpt_shape_of(o.load, &o.shape) != 0)
        exit(2);
    o.shape.layers = s.layers ? s.layers : o.shape.layers;
    o.shape.width = s.width ? s.width : o.shape.width;
    o.shape.heads = s.heads ? s.heads : o.shape.heads;
    o.shape.context = s.context ? s.context : o.shape.context;
    o.shape.vocab = s.vocab ? s.vocab : o.shape.vocab;
    o.shape.dropout = s.dropout;
    o.shape.checkpointing = s.checkpointing;
    o.warmup = o.warmup >= 0 ? o.warmup : o.steps / 20;
    return o;
}
