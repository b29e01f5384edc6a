/* examples/numbers.h: numbers from a command line: all of the text, or one sentence and exit status 2. */
#ifndef EXAMPLES_NUMBERS_H
#define EXAMPLES_NUMBERS_H
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static inline void number_wrong(const char *text, const char *expected)
{
    fprintf(stderr, "%s: got \"%s\" where %s was expected\n", program_invocation_short_name, text, expected);
    exit(2);
}

/* 0 or more */
static inline long long whole_number(const char *text)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || v < 0)
        number_wrong(text, "a whole number of 0 or more");
    return v;
}

static inline double real_number(const char *text)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v - v == 0))
        number_wrong(text, "a number");
    return v;
}
#endif
