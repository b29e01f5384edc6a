/* examples/07_bert/options.c: options, their defaults and limits.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include "options.h"

static const char help[] =
    "bert: trains a BERT encoder on labelled texts; alone, or with `tandem run -n N`\n"
    "  --data DIR          train.tsv and valid.tsv, lines of label, tab, text (prepare.sh makes them); default data\n"
    "  --model DIR         begin with a Hugging Face folder: config.json, vocab.txt, model.safetensors; default: random weights\n"
    "  --masked-lm         learn to name hidden tokens instead of labels (before fine-tuning)\n"
    "  --freeze            the encoder stays as it is: only pooler and classifier learn\n"
    "  --layers N --width N --heads N   of random weights; default 4, 128, 4\n"
    "  --vocab N           most pieces of the vocabulary built from the text; default 4000\n"
    "  --length N          tokens of a text, longer ones are cut; default 64\n"
    "  --pad               batches are always --length wide; default: as wide as their longest text. With --masked-lm at most a quarter is hidden\n"
    "  --capture           record the step once and replay it; a graph has one shape, so this means --pad, too\n"
    "  --epochs N          default 3\n"
    "  --batch N           texts per rank and step; default 32\n"
    "  --lr X              peak of the rate; default 5e-4\n"
    "  --warmup N          steps up to the peak, then straight down to 0; default: a tenth of all\n"
    "  --decay X           weight decay of matrices; default 0.01\n"
    "  --clip X            largest norm of the gradients; default 1, 0: any\n"
    "  --dropout X         default: the folder's, or 0.1\n"
    "  --steps N           stop after step N (the schedule stays that of all epochs)\n"
    "  --save FILE         at the end the weights to FILE (safetensors), the training state to FILE.state\n"
    "  --resume FILE       go on from the training state FILE, also in the middle of an epoch\n"
    "  --export DIR        at the end a Hugging Face folder, for --model and for transformers\n"
    "  --log FILE          append the progress to FILE\n"
    "  --seed N            default 0\n";

static int64_t whole(const char *name, const char *text, int64_t least, int64_t most)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < least || value > most) {
        fprintf(stderr, "bert: --%s is \"%s\", expected a whole number from %lld to %lld\n", name, text, (long long)least, (long long)most);
        exit(2);
    }
    return value;
}

static double real(const char *name, const char *text, double least, double below)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value < below)) {
        fprintf(stderr, "bert: --%s is \"%s\", expected a number from %g to below %g\n", name, text, least, below);
        exit(2);
    }
    return value;
}

options options_parse(int argc, char **argv)
{
    options o = { .data = "data", .vocab = 4000, .layers = 4, .width = 128, .heads = 4, .length = 64, .epochs = 3, .batch = 32, .warmup = -1,
                  .lr = 5e-4, .decay = 0.01, .clip = 1, .dropout = -1 };
    static const struct option known[] = {
        { "data", required_argument, NULL, 'd' },   { "model", required_argument, NULL, 'm' },  { "masked-lm", no_argument, NULL, 'M' },
        { "freeze", no_argument, NULL, 'f' },       { "layers", required_argument, NULL, 'L' }, { "width", required_argument, NULL, 'W' },
        { "heads", required_argument, NULL, 'H' },  { "vocab", required_argument, NULL, 'v' },  { "length", required_argument, NULL, 't' },
        { "epochs", required_argument, NULL, 'e' }, { "batch", required_argument, NULL, 'b' },  { "lr", required_argument, NULL, 'r' },
        { "warmup", required_argument, NULL, 'u' }, { "decay", required_argument, NULL, 'w' },  { "clip", required_argument, NULL, 'c' },
        { "dropout", required_argument, NULL, 'p' }, { "steps", required_argument, NULL, 's' }, { "save", required_argument, NULL, 'S' },
        { "resume", required_argument, NULL, 'R' }, { "export", required_argument, NULL, 'X' }, { "log", required_argument, NULL, 'l' },
        { "seed", required_argument, NULL, 'x' },   { "help", no_argument, NULL, 'h' },         { "pad", no_argument, NULL, 'P' },
        { "capture", no_argument, NULL, 'C' },      { NULL, 0, NULL, 0 },
    };
    const int64_t many = 1 << 24;
    int at;
    for (int c; (c = getopt_long(argc, argv, "", known, &at)) != -1;) {
        const char *name = c == '?' ? "" : known[at].name;
        switch (c) {
        case 'd': o.data = optarg; break;
        case 'm': o.model = optarg; break;
        case 'M': o.masked = true; break;
        case 'f': o.freeze = true; break;
        case 'P': o.pad = true; break;
        case 'C': o.capture = o.pad = true; break;
        case 'L': o.layers = whole(name, optarg, 1, 1000); break;
        case 'W': o.width = whole(name, optarg, 1, 1 << 16); break;
        case 'H': o.heads = whole(name, optarg, 1, 1 << 16); break;
        case 'v': o.vocab = whole(name, optarg, 5, many); break;
        case 't': o.length = whole(name, optarg, 2, 1 << 16); break;
        case 'e': o.epochs = whole(name, optarg, 1, many); break;
        case 'b': o.batch = whole(name, optarg, 1, many); break;
        case 'r': o.lr = real(name, optarg, 0, 1e3); break;
        case 'u': o.warmup = whole(name, optarg, 0, INT64_MAX); break;
        case 'w': o.decay = real(name, optarg, 0, 1e3); break;
        case 'c': o.clip = real(name, optarg, 0, 1e9); break;
        case 'p': o.dropout = real(name, optarg, 0, 1); break;
        case 's': o.steps = whole(name, optarg, 1, INT64_MAX); break;
        case 'S': o.save = optarg; break;
        case 'R': o.resume = optarg; break;
        case 'X': o.export = optarg; break;
        case 'l': o.log = optarg; break;
        case 'x': o.seed = (uint64_t)whole(name, optarg, 0, INT64_MAX); break;
        case 'h': fputs(help, stdout); exit(0);
        default: fputs(help, stderr); exit(2);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "bert: \"%s\" is no option\n", argv[optind]);
        exit(2);
    }
    if (!o.model && o.width % o.heads != 0) {
        fprintf(stderr, "bert: --heads is %lld, expected a divisor of --width %lld\n", (long long)o.heads, (long long)o.width);
        exit(2);
    }
    if (o.masked && o.freeze) {
        fprintf(stderr, "bert: --freeze and --masked-lm exclude each other\n");
        exit(2);
    }
    return o;
}
