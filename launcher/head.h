/* launcher/head.h: what the three files of the head share; see across.h for the whole.
 *
 *   head.c        the life of a job: phases, the clock, signals
 *   head_told.c   what agents tell, and what their silence means
 *   head_start.c  everything up to the first agent, and the engine's own output
 */
#ifndef TD_HEAD_H
#define TD_HEAD_H
#include "across.h"

enum { TD_HEAD_TICK_MS = 50, TD_HEAD_HELD = 65536 };
typedef enum { TD_MEETING, TD_RUNNING, TD_GRACE, TD_ENDING, TD_LEAVING, TD_KILLING } td__head_phase;
typedef struct {
    td__job job;
    uv_loop_t loop;
    td__signals signals;
    uv_timer_t timer;
    td__inbox *inbox;
    td__store_server *server;
    td__store *store;                          /* our own connection to it: commands are keys like any other */
    td__hello *hello;
    td__lines **out, **err;                    /* one per rank; NULL: none, or its reader has gone */
    bool *came, *gone;
    int32_t *node_rank;
    td__head_phase phase;
    uint64_t phase_end, engine_ended_at;       /* uv_now */
    double first_hello;
    int64_t commands;
    int hellos, hosts, living, agents, asked_by, interrupts, cause, result;
    bool said, given_up, some_lost, engine_ended, own_agents;
    pid_t engine;                              /* 0: agents are our own children (hand-started) */
    int engine_status;
    uv_pipe_t engine_out[2];
    char held[TD_HEAD_HELD];
    size_t held_size;
    double held_since;
} td__head;

/* ---- head.c ---- */
void td__head_command(td__head *h, td__command_kind kind, int number);
void td__head_enter(td__head *h, td__head_phase next, uint64_t milliseconds);
/* No rank is the cause: something around them is. Says so as the first line, and ends the job. */
void td__head_give_up(td__head *h, int status, const char *format, ...) TD_PRINTF(3, 4);
void td__head_rank_ended(td__head *h, td__rank *rank);
int  td__head_open_loop(td__head *h);          /* 0, or a libuv error                                                     */
/* ---- head_told.c ---- */
void td__head_told(void *head, const td__told *message);
double td__head_silence(const td__head *h, int rank);   /* seconds since the agent's last word; 0: gone, or not yet come   */
void td__head_find_lost(td__head *h);
/* ---- head_start.c ---- */
int  td__head_prepare(td__head *h, td__hand_place *place);   /* secret, store, who is there. 0, or the exit status after a sentence */
int  td__head_begin(td__head *h, const td__hand_place *place);   /* 0: agents are on their way                            */
void td__head_free(td__head *h);
void td__head_show_held(td__head *h);          /* what the engine has printed                                             */
#endif
