/* launcher/agent.h: what the two files of an agent share; see across.h for the whole.
 *
 *   agent.c       who it is, what it is told, when and how its rank ends
 *   agent_rank.c  starting the rank; its output
 */
#ifndef TD_AGENT_H
#define TD_AGENT_H
#include "across.h"

typedef enum { TD_AGENT_WAITING, TD_AGENT_RUNNING, TD_AGENT_ENDING, TD_AGENT_KILLING, TD_AGENT_LINGERING } td__agent_phase;
typedef struct {
    uv_pipe_t pipe;
    td__tell_kind kind;
    int to, log;                               /* to: our own stdout or stderr, -1: the head's; log: -1: none */
    bool shown, open, paused;
} td__outlet;
typedef struct {
    uv_loop_t loop;
    td__signals signals;
    uv_timer_t timer, look;
    td__still still;
    td__link *link;
    td__orders orders;
    td__world world;
    td__division division;
    const char *engine;
    char **argv;
    char host[64];
    td__outlet out[2];
    td__agent_phase phase;
    uint64_t phase_end;
    pid_t parent, pid;
    bool ended, asked, lost, started;
    int status, result, looks, box;            /* box: the black box, open; -1: none seen yet */
    int64_t ended_ns;
} td__agent;

/* ---- agent.c ---- */
int  td__agent_complain(const char *format, ...) TD_PRINTF(1, 2);   /* on our own stderr; 1                                  */
/* ---- agent_rank.c ---- */
void td__agent_start_rank(td__agent *g, const td__go *go);
void td__agent_room(void *agent);              /* a td__link_events' room: read on                                        */
void td__outlet_close(td__outlet *o);
#endif
