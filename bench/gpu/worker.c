/* bench/gpu/worker.c: the loop behind worker.h. */
#include "../common.h"
#include "worker.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KERNELS = 256 };

static void run(worker_step *step, void *user, long n)
{
    for (long i = 0; i < n && !td_error_pending(); i++) {
        TD_SCOPE();
        step(user);
    }
    td_synchronize(td_device_default());
}

static void steps(worker_step *step, void *user, long n)
{
    td_synchronize(td_device_default());
    double since = now();
    run(step, user, n);
    printf("ms %.6f\n", 1e3 * (now() - since));
}

static void losses(worker_step *step, void *user, long n)
{
    printf("losses");
    for (long i = 0; i < n && !td_error_pending(); i++) {
        TD_SCOPE();
        printf(" %.9g", td_item(step(user)));
    }
    printf("\n");
}

static void kernels(worker_step *step, void *user, long n)
{
    static td_kernel_time t[KERNELS];
    td_synchronize(td_device_default());
    if (td_kernel_times_begin(td_device_default()))
        return;
    run(step, user, n);
    int found = td_kernel_times_end(td_device_default(), t, KERNELS);
    printf("kernels {");
    for (int i = 0; i < found && i < KERNELS; i++)
        printf("%s\"%s\": [%lld, %.6f]", i ? ", " : "", t[i].kernel, (long long)t[i].calls, t[i].ms);
    printf("}\n");
}

int worker_serve(worker_step *step, void *user)
{
    char line[80], word[80];
    td_errors(TD_ERRORS_RETURN);
    printf("ready\n");
    fflush(stdout);
    while (!td_error_pending() && fgets(line, sizeof line, stdin)) {
        long n = 0;
        if (sscanf(line, "%79s %ld", word, &n) < 1)
            continue;
        if (strcmp(word, "quit") == 0)
            break;
        if (strcmp(word, "steps") == 0)
            steps(step, user, n);
        else if (strcmp(word, "losses") == 0)
            losses(step, user, n);
        else if (strcmp(word, "kernels") == 0)
            kernels(step, user, n);
        else if (strcmp(word, "memory") == 0)
            printf("bytes %lld\n", (long long)td_memory_of(td_device_default()).peak_bytes);
        else
            printf("error: \"%s\" is no command\n", word);
        if (td_error_pending())
            break;
        fflush(stdout);
    }
    if (!td_error_pending())
        return 0;
    printf("error: %s\n", td_error_message());
    fflush(stdout);
    return 1;
}
