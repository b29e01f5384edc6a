/* comm/comm_hier_wait.c: waiting for a message of another host, without taking the core from those who compute.
 *
 * Nothing wakes a rank when a message comes, so it has to ask. Asking without a pause would keep a core busy that a neighbour (or this rank's own
 * backward) could use, so after a moment the pauses grow, up to a third of a millisecond: the kernel's buffers keep the link filled meanwhile.
 */
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include "comm_hier.h"

enum { ASK_NS = 30 * 1000, PAUSE_NS = 40 * 1000, LONGEST_NS = 300 * 1000 };
#define LOOK 0.02                              /* seconds between two looks at peers and clock                                   */

static int late(td__hier *h, const td_coll *coll, int peer)
{
    char text[TD_SENTENCE], mine[TD_CALL_TEXT];
    h->host->call_text(coll, mine);
    snprintf(text, sizeof text, "rank %d waited %g s (TANDEM_TIMEOUT) in %s for rank %d on host %s, which sent nothing: it did not come there, is stopped or "
             "cannot be reached", h->comm->rank, h->comm->timeout, mine, peer, h->name[h->layout.host[peer]]);
    return td__verdict(&h->view, TD_ERR_TIMEOUT, text);
}

/* Is there still anything to wait for? */
static int look(td__hier *h, const td_coll *coll, int peer, double since, double now)
{
    h->looked = now;
    int code = atomic_load(&h->comm->code);
    if (!code)
        code = td__control_check(&h->view, coll, now);
    if (!code && now - since > h->comm->timeout)
        code = late(h, coll, peer);
    return code;
}

int td__hier_await(td__hier *h, const td_coll *coll, td_wire_request *request, int peer)
{
    int64_t begun = td__now_ns(), pause = PAUSE_NS;
    double since = 1e-9 * (double)begun;
    int code;
    while ((code = h->plug->wire->test(h->plug_state, request)) == 0) {
        int64_t now = td__now_ns();
        if (now - begun < ASK_NS) {
            sched_yield();
            continue;
        }
        nanosleep(&(struct timespec){ 0, pause }, NULL);
        pause = pause * 5 / 4 < LONGEST_NS ? pause * 5 / 4 : LONGEST_NS;
        double seconds = td__now();
        if (seconds - h->looked > LOOK && (code = look(h, coll, peer, since, seconds)) != 0)
            return code;
    }
    return code < 0 ? code : 0;
}
