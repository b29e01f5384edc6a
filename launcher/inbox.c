/* launcher/inbox.c: what the agents tell, handed from the store's thread to the head's loop, in order.
 *
 * The store's thread must not wait, so everything is queued; that the queue stays small is the agents' doing: each tells no more output
 * than it is allowed, and the answer to everything that it tells is how much of its output the head has written so far.
 * Every word, a beat too, is a sign of life, and noted here and not on the loop: a loop that waits for a slow terminal misses none.
 */
#include "across.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct node {
    struct node *next;
    td__told message;
} node;

struct td__inbox {
    uv_async_t wake;
    pthread_mutex_t lock;
    node *first, **end;
    int size;
    void (*told)(void *user, const td__told *message);
    void *user;
    bool closed;
    double *heard;                             /* td__now of the last word; 0: none yet */
    int64_t *written;                          /* bytes of output that are off our hands */
};

int64_t td__inbox_hear(void *user, const char *key, const void *value, size_t size)
{
    td__inbox *in = user;
    const char *kind = value;
    char *end;
    long rank = strncmp(key, "agent/", 6) == 0 ? strtol(key + 6, &end, 10) : -1;
    if (rank < 0 || rank >= in->size || *end || size < 1)
        return -1;
    node *n = *kind == TD_TELL_BEAT ? NULL : malloc(sizeof *n + size);
    if (n) {
        *n = (node){ .message = { .rank = (int)rank, .kind = (td__tell_kind)*kind, .size = size - 1 } };
        memcpy(n->message.bytes, kind + 1, size - 1);
    }
    pthread_mutex_lock(&in->lock);
    in->heard[rank] = td__now();
    int64_t written = in->written[rank];
    if (n) {
        *in->end = n;
        in->end = &n->next;
    }
    bool wake = n && !in->closed;
    if (wake)
        uv_async_send(&in->wake);
    pthread_mutex_unlock(&in->lock);
    return written;
}

static void on_wake(uv_async_t *wake)
{
    td__inbox *in = wake->data;
    for (;;) {
        pthread_mutex_lock(&in->lock);
        node *n = in->first;
        if (n && !(in->first = n->next))
            in->end = &in->first;
        pthread_mutex_unlock(&in->lock);
        if (!n)
            return;
        in->told(in->user, &n->message);
        if (n->message.kind == TD_TELL_OUT || n->message.kind == TD_TELL_ERR) {
            pthread_mutex_lock(&in->lock);
            in->written[n->message.rank] += (int64_t)n->message.size;
            pthread_mutex_unlock(&in->lock);
        }
        free(n);
    }
}

td__inbox *td__inbox_new(uv_loop_t *loop, int size, void (*told)(void *, const td__told *), void *user)
{
    td__inbox *in = calloc(1, sizeof *in);
    if (!in)
        return NULL;
    *in = (td__inbox){ .size = size, .told = told, .user = user, .heard = calloc((size_t)size, sizeof *in->heard),
                       .written = calloc((size_t)size, sizeof *in->written) };
    in->end = &in->first;
    in->wake.data = in;
    pthread_mutex_init(&in->lock, NULL);
    if (in->heard && in->written && uv_async_init(loop, &in->wake, on_wake) == 0)
        return in;
    in->closed = true;
    td__inbox_free(in);
    return NULL;
}

double td__inbox_silence(td__inbox *in, int rank)
{
    pthread_mutex_lock(&in->lock);
    double heard = in->heard[rank];
    pthread_mutex_unlock(&in->lock);
    return heard == 0 ? -1 : td__now() - heard;
}

void td__inbox_close(td__inbox *in)
{
    pthread_mutex_lock(&in->lock);
    in->closed = true;
    pthread_mutex_unlock(&in->lock);
    uv_close((uv_handle_t *)&in->wake, NULL);
}

void td__inbox_free(td__inbox *in)
{
    for (node *n = in->first, *next; n; n = next) {
        next = n->next;
        free(n);
    }
    pthread_mutex_destroy(&in->lock);
    free(in->heard);
    free(in->written);
    free(in);
}
