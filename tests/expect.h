/* tests/expect.h: what all ranks must find true is one line of TAP on rank 0's standard output; a rank that does not says so on its standard error.
 * For programs that are started on several ranks; each defines EXPECT as it needs it.
 */
#ifndef TD_TEST_EXPECT_H
#define TD_TEST_EXPECT_H
#include <stdio.h>
#include <string.h>
#include <tandem.h>

static int rank, size, tests, failures;

/* name: of the case, in front of what is expected; NULL: none */
static void expect_(bool ok, const char *what, const char *name, int line)
{
    const char *colon = name ? ": " : "";
    name = name ? name : "";
    if (!ok)
        fprintf(stderr, "rank %d, line %d: %s%s%s (pending: %s)\n", rank, line, name, colon, what, td_error_message());
    TD_SCOPE();
    td_tensor *bad = td_full(TD_SCALAR, TD_F64, !ok);
    td_all_reduce(td_world(), bad, TD_SUM);
    tests++;
    failures += td_item(bad) != 0;
    if (rank == 0)
        printf("%s %d - %s%s%s\n", td_item(bad) == 0 ? "ok" : "not ok", tests, name, colon, what);
}

/* Is this error pending, and does it say so? It is no more. */
static inline bool has_error(int code, const char *part)
{
    const bool yes = td_error_pending() == code && strstr(td_error_message(), part);
    if (!yes)
        fprintf(stderr, "rank %d: pending %d \"%s\", expected \"%s\"\n", rank, td_error_pending(), td_error_message(), part);
    td_error_clear();
    return yes;
}

#endif
