/* job/job_impl.h: the state of a job. Internal.
 */
#ifndef TD_JOB_IMPL_H
#define TD_JOB_IMPL_H
#include <comm_impl.h>
#include <tandem/job.h>

extern bool td__job_running;               /* between td_init and td_finish                                                   */
/* state.c */
void td__job_state_free_all(void);
bool td__job_state_ended(void);            /* was a loop ended on request? Forgets it                                                 */
#endif
