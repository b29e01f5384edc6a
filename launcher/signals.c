/* launcher/signals.c: the signals that a launcher passes on to its ranks, watched on its loop. */
#include "launcher.h"
#include <signal.h>
#include <unistd.h>

static const int passed[TD_SIGNALS] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 };

static bool is_ignored(int number)
{
    struct sigaction now;
    return sigaction(number, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}

/* ThreadSanitizer's runtime (GCC 12) makes a thread's place for signals at its first blocking call and forgets one that arrives
 * meanwhile: a rank that ended while the loop first waited would never be reaped. */
static void before_the_first_signal(void)
{
#ifdef __SANITIZE_THREAD__
    usleep(1);
#endif
}

int td__signals_watch(td__signals *s, uv_loop_t *loop, void *data, uv_signal_cb on_passed, uv_signal_cb on_child_ended, bool ignored_too)
{
    before_the_first_signal();
    int error = uv_signal_init(loop, &s->child_ended);
    s->child_ended.data = data;
    if (!error)
        error = uv_signal_start(&s->child_ended, on_child_ended, SIGCHLD);
    for (int i = 0; i < TD_SIGNALS && !error; i++) {
        error = uv_signal_init(loop, &s->passed[i]);
        s->passed[i].data = data;
        if (!error && (ignored_too || !is_ignored(passed[i])))
            error = uv_signal_start(&s->passed[i], on_passed, passed[i]);
    }
    signal(SIGPIPE, SIG_IGN);
    return error;
}

void td__signals_close(td__signals *s)
{
    for (int i = 0; i < TD_SIGNALS; i++)
        uv_close((uv_handle_t *)&s->passed[i], NULL);
    uv_close((uv_handle_t *)&s->child_ended, NULL);
}
