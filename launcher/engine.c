/* launcher/engine.c: the command that starts the agents: put together, and shown by --dry-run as a shell would take it.
 */
#include "across.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Noreturn static void no_memory(void)
{
    fprintf(stderr, "tandem run: no memory for the engine's command\n");
    exit(1);
}

void td__words_add(td__words *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *word = NULL;
    int n = vasprintf(&word, format, args);
    va_end(args);
    char **grown = n < 0 ? NULL : realloc(w->word, (size_t)(w->n + 2) * sizeof *grown);
    if (!grown)
        no_memory();
    w->word = grown;
    w->word[w->n++] = word;
    w->word[w->n] = NULL;
}

void td__words_append(td__words *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *more = NULL, *both = NULL;
    if (vasprintf(&more, format, args) < 0 || asprintf(&both, "%s%s", w->word[w->n - 1], more) < 0)
        no_memory();
    va_end(args);
    free(more);
    free(w->word[w->n - 1]);
    w->word[w->n - 1] = both;
}

void td__words_free(td__words *w)
{
    for (int i = 0; i < w->n; i++)
        free(w->word[i]);
    free(w->word);
    *w = (td__words){ 0 };
}

bool td__in_path(const char *program)
{
    const char *folders = td__getenv("PATH");
    for (const char *p = folders && *folders ? folders : "/usr/local/bin:/usr/bin:/bin";; p++) {
        char path[4200];
        size_t n = strcspn(p, ":");
        snprintf(path, sizeof path, "%.*s/%s", (int)(n < 4096 ? n : 4096), p, program);
        if (access(path, X_OK) == 0)
            return true;
        p += n;
        if (!*p)
            return false;
    }
}

const char *td__engine_name(const td__run_options *o)
{
    static const char *const names[] = { [TD_ENGINE_AUTO] = "auto", [TD_ENGINE_LOCAL] = "local", [TD_ENGINE_MPIRUN] = "mpirun",
                                         [TD_ENGINE_SRUN] = "srun", [TD_ENGINE_HAND] = "hand" };
    return names[o->engine];
}

/* The same file on every host: clusters share it, as they share the program. */
void td__agent_words(const td__run_options *o, td__words *w)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    td__words_add(w, "%s", n > 0 ? self : "tandem");
    td__words_add(w, "agent");
    td__words_add(w, "%s", td__engine_name(o));
    td__words_add(w, "--");
    for (char **a = o->argv; *a; a++)
        td__words_add(w, "%s", *a);
}

int td__engine_words(const td__run_options *o, td__words *w)
{
    int status = o->engine == TD_ENGINE_MPIRUN ? td__engine_mpirun(o, w) : o->engine == TD_ENGINE_SRUN ? td__engine_srun(o, w) : 0;
    if (status == 0 && o->engine != TD_ENGINE_LOCAL)
        td__agent_words(o, w);
    for (char **a = o->argv; *a && o->engine == TD_ENGINE_LOCAL; a++)
        td__words_add(w, "%s", *a);
    return status;
}

static bool plain(const char *word)
{
    for (const char *c = word; *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("_-+=./:,@%", *c)))
            return false;
    return *word != '\0';
}

static void print_word(const char *word)
{
    if (plain(word)) {
        fputs(word, stdout);
        return;
    }
    putchar('\'');
    for (const char *c = word; *c; c++)
        if (*c == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*c);
    putchar('\'');
}

/* Here and by hand no engine is run: then what is started, and how often. */
int td__engine_show(const td__run_options *o)
{
    td__words w = { 0 };
    int status = td__engine_words(o, &w);
    if (status == 0 && o->engine == TD_ENGINE_LOCAL)
        printf("# %d on this machine:\n", o->ranks);
    else if (status == 0 && o->engine == TD_ENGINE_HAND)
        printf("# %d on this machine, which is node %d of %d; node 0 is %s:\n", o->ranks, o->node_rank, o->nodes, o->master_addr);
    for (int i = 0; i < w.n && status == 0; i++) {
        print_word(w.word[i]);
        putchar(i + 1 < w.n ? ' ' : '\n');
    }
    td__words_free(&w);
    return status;
}
