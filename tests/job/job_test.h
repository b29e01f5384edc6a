/* tests/job/job_test.h: ranks as processes of their own, started by our launcher's variables, which say what is not so and leave with 99.
 * Include it after <cmocka.h>. mkdtemp(job_folder) first: black boxes go there.
 */
#ifndef JOB_TEST_H
#define JOB_TEST_H
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <tandem.h>

static char job_folder[] = "/tmp/tandem-test-job-XXXXXX";

#define EXPECT(what)                                                                                             \
    do {                                                                                                         \
        if (!(what)) {                                                                                           \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, td_error_message());          \
            _exit(99);                                                                                           \
        }                                                                                                        \
    } while (0)

typedef int body(void);

/* Ranks of one world; returns the largest exit code (128 + signal). */
static int run(int ranks, body *f)
{
    static int jobs;
    pid_t pid[8];
    char text[64];
    int worst = 0;
    jobs++;
    for (int r = 0; r < ranks; r++) {
        pid[r] = fork();
        assert_true(pid[r] >= 0);
        if (pid[r])
            continue;
        setenv("TANDEM_RUNTIME_DIR", job_folder, 1);
        if (ranks > 1) {
            snprintf(text, sizeof text, "%d", r);
            setenv("TANDEM_RANK", text, 1), setenv("TANDEM_LOCAL_RANK", text, 1);
            snprintf(text, sizeof text, "%d", ranks);
            setenv("TANDEM_SIZE", text, 1), setenv("TANDEM_LOCAL_SIZE", text, 1);
            snprintf(text, sizeof text, "job-%d-%d", (int)getppid(), jobs);
            setenv("TANDEM_JOB", text, 1);
        }
        exit(f());
    }
    for (int r = 0; r < ranks; r++) {
        int status;
        assert_int_equal(waitpid(pid[r], &status, 0), pid[r]);
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        worst = code > worst ? code : worst;
    }
    return worst;
}
#endif
