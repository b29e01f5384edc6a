/* launcher/head_start.c: everything of a job across hosts up to its first agent, and what the engine itself prints.
 *
 * The secret and the store's address go to the agents by the environment, which every engine forwards in its own way.
 */
#include "head.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* ---- what the engine prints ---------------------------------------------------------------------------------------------------------- */

void td__head_show_held(td__head *h)
{
    for (size_t done = 0; done < h->held_size;) {
        ssize_t n = write(STDERR_FILENO, h->held + done, h->held_size - done);
        if (n < 0 && errno != EINTR)
            break;
        done += n > 0 ? (size_t)n : 0;
    }
    h->held_size = 0;
}

static void on_engine_room(uv_handle_t *handle, size_t wanted, uv_buf_t *into)
{
    static char chunk[4096];
    (void)handle, (void)wanted;
    *into = uv_buf_init(chunk, sizeof chunk);
}

static void on_engine_bytes(uv_stream_t *from, ssize_t n, const uv_buf_t *bytes)
{
    td__head *h = from->data;
    if (n < 0) {
        uv_close((uv_handle_t *)from, NULL);
        return;
    }
    if (h->held_size + (size_t)n > sizeof h->held)
        td__head_show_held(h);
    if (h->held_size == 0)
        h->held_since = td__now();
    memcpy(h->held + h->held_size, bytes->base, (size_t)n);
    h->held_size += (size_t)n;
}

/* ---- before the engine ---------------------------------------------------------------------------------------------------------------- */

static int open_memory(td__head *h)
{
    size_t n = (size_t)h->job.size;
    td__far *far = calloc(n, sizeof *far);
    h->job.rank = calloc(n, sizeof *h->job.rank);
    h->hello = calloc(n, sizeof *h->hello);
    h->out = calloc(n, sizeof *h->out);
    h->err = calloc(n, sizeof *h->err);
    h->came = calloc(n, sizeof *h->came);
    h->gone = calloc(n, sizeof *h->gone);
    h->node_rank = calloc(n, sizeof *h->node_rank);
    if (!far || !h->job.rank || !h->hello || !h->out || !h->err || !h->came || !h->gone || !h->node_rank)
        return 1;
    for (size_t r = 0; r < n; r++) {
        h->job.rank[r] = (td__rank){ .rank = (int)r, .far = &far[r] };
        h->node_rank[r] = -1;
    }
    return 0;
}

static int set_orders(td__head *h)
{
    const td__run_options *o = h->job.options;
    td__orders *orders = calloc(1, sizeof *orders);
    if (!orders)
        return 1;
    *orders = (td__orders){ .magic = TD_ORDERS_MAGIC, .bytes = sizeof *orders, .size = h->job.size, .threads = o->threads,
                            .columns = h->job.columns, .no_binding = o->no_binding, .own_output = h->own_agents,
                            .kill_after_s = o->kill_after_s };
    snprintf(orders->job, sizeof orders->job, "%s", h->job.name);
    snprintf(orders->log_dir, sizeof orders->log_dir, "%s", o->streams.log_dir ? o->streams.log_dir : "");
    snprintf(orders->tee, sizeof orders->tee, "%s", o->streams.tee ? o->streams.tee : "");
    snprintf(orders->redirects, sizeof orders->redirects, "%s", o->streams.redirects ? o->streams.redirects : "");
    snprintf(orders->filter, sizeof orders->filter, "%s", o->streams.filter ? o->streams.filter : "");
    int code = td__store_set(h->store, "orders", orders, sizeof *orders);
    free(orders);
    return code;
}

static int start_engine(td__head *h)
{
    int out[2][2] = { { -1, -1 }, { -1, -1 } };
    td__words words = { 0 };
    char *path = NULL;
    int status = td__engine_words(h->job.options, &words);
    if (status == 0)
        status = td__program_find(words.word[0], &path);
    if (status == 0 && (pipe2(out[0], O_CLOEXEC) != 0 || pipe2(out[1], O_CLOEXEC) != 0))
        status = 1;
    td__start start = { .path = path, .argv = words.word, .variables = environ, .in = STDIN_FILENO, .out = out[0][1], .err = out[1][1],
                        .death_signal = SIGTERM };
    int error = status ? 0 : td__spawn(&start, &h->engine);
    if (error) {
        td__lines_say("%s cannot be started: %s", path, strerror(-error));
        status = 1;
    }
    for (int i = 0; i < 2; i++) {
        if (out[i][1] >= 0)
            close(out[i][1]);
        if (status) {
            if (out[i][0] >= 0)
                close(out[i][0]);
            continue;
        }
        fcntl(out[i][0], F_SETFL, O_NONBLOCK);
        uv_pipe_init(&h->loop, &h->engine_out[i], 0);
        h->engine_out[i].data = h;
        uv_pipe_open(&h->engine_out[i], out[i][0]);
        uv_read_start((uv_stream_t *)&h->engine_out[i], on_engine_room, on_engine_bytes);
    }
    td__words_free(&words);
    free(path);
    return status;
}

/* Secret, store, who is there; afterwards only agents are missing. */
int td__head_prepare(td__head *h, td__hand_place *place)
{
    const td__run_options *o = h->job.options;
    unsigned char random[8], secret[32];
    char address[256], where[300], hex[17];
    int status = 0;
    if (getrandom(random, sizeof random, 0) != sizeof random || getrandom(secret, sizeof secret, 0) != sizeof secret) {
        td__lines_say("no random numbers for the job's secret: %s", strerror(errno));
        return 1;
    }
    td__to_hex(random, sizeof random, hex);
    snprintf(h->job.name, sizeof h->job.name, "%d-%s", (int)getpid(), hex);
    if (h->own_agents) {
        h->server = td__hand_serve(o, secret);
    } else if ((status = td__address_for(o, address, sizeof address)) == 0) {
        snprintf(where, sizeof where, strchr(address, ':') ? "tcp:[%s]:%d" : "tcp:%s:%d", address, o->master_port);
        h->server = td__store_serve(where, secret);
        if (!h->server)
            td__lines_say("the job's meeting point cannot be opened: %s", td_error_message());
    }
    if (!h->server)
        return status ? status : 1;
    td__to_hex(secret, sizeof secret, h->job.secret);
    h->job.store = td__store_address(h->server);
    h->store = td__store_connect(h->job.store, secret, 10);
    if (!h->store) {
        td__lines_say("the job's meeting point cannot be reached: %s", td_error_message());
        return 1;
    }
    setenv("TANDEM_STORE", h->job.store, 1);   /* what the engine forwards */
    setenv("TANDEM_SECRET", h->job.secret, 1);
    h->job.size = o->ranks;
    if (h->own_agents && (status = td__hand_meet(o, h->store, h->job.name, place)) == 0)
        h->job.size = place->size;
    return status;
}

/* 0: agents are on their way. */
int td__head_begin(td__head *h, const td__hand_place *place)
{
    const td__run_options *o = h->job.options;
    int error = 0;
    h->job.prefix = (h->job.size > 1 || o->tag_output) && !o->no_prefix;
    h->job.columns = td__columns_for_ranks(h->job.prefix, h->job.size);
    if (open_memory(h) != 0) {
        td__lines_say("memory cannot be had");
        return 1;
    }
    if ((error = td__head_open_loop(h)) || !(h->inbox = td__inbox_new(&h->loop, h->job.size, td__head_told, h))) {
        td__lines_say("there is no event loop: %s", error ? uv_strerror(error) : "no memory");
        return 1;
    }
    td__lines_begin(&h->loop, h->job.prefix, h->job.columns > 0);
    for (int r = 0; r < h->job.size && !h->own_agents; r++) {
        h->out[r] = td__lines_open_fed(r, STDOUT_FILENO);
        h->err[r] = td__lines_open_fed(r, STDERR_FILENO);
    }
    td__store_listen(h->server, td__inbox_hear, h->inbox);
    if (set_orders(h) != 0) {
        td__lines_say("the agents' orders cannot be written: %s", td_error_message());
        return 1;
    }
    if (!h->own_agents)
        return start_engine(h);
    error = td__hand_start(o, place, NULL);
    if (error)
        td__lines_say("the agents cannot be started: %s", strerror(-error));
    return error ? 1 : 0;
}

void td__head_free(td__head *h)
{
    if (h->job.rank)
        free(h->job.rank[0].far);
    free(h->job.rank);
    free(h->hello);
    free(h->out);
    free(h->err);
    free(h->came);
    free(h->gone);
    free(h->node_rank);
}
