/* job/progress.c: what a person sees of a training loop: one rewritten line on a terminal, plain lines elsewhere and in a log.
 *
 * Under our launcher standard output is a pipe; TANDEM_TERMINAL then says how many columns the launcher's terminal has. A line that
 * is to be rewritten ends in '\r', which the launcher passes on at once.
 */
#include <base.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <tandem/job.h>

struct td_progress {
    const char *title;
    int64_t     steps, done, rows, rows_shown;
    double      every, began, shown, lined;
    double      exposed_ms, step_ms;
    double      loss;
    int         columns;          /* 0: no terminal                                                                   */
    FILE       *log;
};

static td_progress none;          /* what callers hold when memory is gone                                            */

static int terminal_columns(void)
{
    struct winsize size;
    if (isatty(STDOUT_FILENO) && !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size))
        return size.ws_col ? size.ws_col : 80;
    return (int)td__env_number(TD_ENV_TERMINAL, 0, 0, 10000);
}

td_progress *td_progress_new(const td_progress_opts *opts)
{
    TD_ENTER();
    static const td_progress_opts standard;
    opts = opts ? opts : &standard;
    td_progress *p = td__calloc(sizeof *p);
    if (!p)
        return &none;
    p->title = opts->title ? opts->title : "train";
    p->steps = opts->steps;
    p->every = opts->every_s > 0 ? opts->every_s : 2;
    p->began = p->shown = p->lined = td__now();
    p->columns = td__world_now()->rank == 0 ? terminal_columns() : 0;
    if (opts->log && td__world_now()->rank == 0 && !(p->log = fopen(opts->log, "a")))
        td__fail(TD_ERR_IO, "td_progress_new: cannot append to the log \"%s\": %m", opts->log);
    return p;
}

/* What follows the bar is the same text as the plain line's. */
static void facts(const td_progress *p, double now, char *into, size_t size)
{
    double seconds = now - p->began;
    int n = snprintf(into, size, "%.0f samples/s  loss %.4f", seconds > 0 ? (double)p->rows / seconds : 0, p->loss);
    if (td__world_now()->size > 1 && p->step_ms > 0 && n > 0 && (size_t)n < size)
        snprintf(into + n, size - (size_t)n, "  exposed comm %.1f%%", 100 * p->exposed_ms / p->step_ms);
}

static void rewrite(const td_progress *p, double now)
{
    char text[256], bar[64];
    facts(p, now, text, sizeof text);
    int room = p->columns - (int)strlen(text) - (int)strlen(p->title) - 28;
    int width = p->steps ? (room < 40 ? room : 40) : 0;
    if (width < 0)
        width = 0;
    int full = p->steps ? (int)((int64_t)width * p->done / p->steps) : 0;
    for (int i = 0; i < width; i++)
        bar[i] = i < full ? '#' : '.';
    bar[width] = 0;
    double left = p->done ? (now - p->began) / (double)p->done * (double)(p->steps - p->done) : 0;
    char line[512];
    int n = p->steps ? snprintf(line, sizeof line, "%s [%s] %lld/%lld  %s  %.0fs left", p->title, bar, (long long)p->done,
                                (long long)p->steps, text, left > 0 ? left : 0)
                     : snprintf(line, sizeof line, "%s %lld  %s", p->title, (long long)p->done, text);
    if (n >= p->columns)
        n = p->columns - 1;
    printf("\r%.*s\033[K\r", n, line);
    fflush(stdout);
}

static void plain(const td_progress *p, double now, FILE *to)
{
    char text[256], of[32] = "";
    facts(p, now, text, sizeof text);
    if (p->steps)
        snprintf(of, sizeof of, "/%lld", (long long)p->steps);
    fprintf(to, "%s step %lld%s  %.1f s  %s\n", p->title, (long long)p->done, of, now - p->began, text);
    fflush(to);
}

void td_progress_step(td_progress *p, int64_t rows, td_tensor *loss, const td_ddp *ddp)
{
    TD_ENTER();
    if (!p) {
        td__fail(TD_ERR_ARGUMENT, "td_progress_step: the progress is NULL");
        return;
    }
    p->done++;
    p->rows += rows * td__world_now()->size;
    if (ddp) {
        td_ddp_stats last = td_ddp_last_step(ddp);
        p->exposed_ms += last.exposed_ms;
        p->step_ms += last.step_ms;
    }
    if (p == &none || td__world_now()->rank != 0)
        return;
    double now = td__now();
    bool draw = p->columns && now - p->shown >= 0.1, line = now - p->lined >= p->every;
    if (!draw && !line && p->done != p->steps)   /* td_progress_end shows the last one's loss */
        return;
    p->loss = td_item(loss);
    if (draw) {
        rewrite(p, now);
        p->shown = now;
    }
    if (line) {
        if (p->log)
            plain(p, now, p->log);
        if (!p->columns)
            plain(p, now, stdout);
        p->lined = now;
    }
}

double td_progress_end(td_progress *p)
{
    TD_ENTER();
    if (!p)
        td__fail(TD_ERR_ARGUMENT, "td_progress_end: the progress is NULL");
    if (!p || p == &none)
        return 0;
    double now = td__now(), seconds = now - p->began;
    if (td__world_now()->rank == 0) {
        if (p->columns)
            printf("\r\033[K");
        plain(p, now, stdout);
        if (p->log) {
            plain(p, now, p->log);
            fclose(p->log);
        }
    }
    td__free(p);
    return seconds;
}
