/* bench/events_site.c: a public function of a shared library that notes its call site, and one that does not: bench/events takes the difference.
 * A library of its own, since thread-local variables cost more in a library than in a program.
 */
#include <base.h>

__thread const void *td__site;
uintptr_t td__text_low, td__text_size;

TD_API int events_with_site(int x);
TD_API int events_without_site(int x);

int events_with_site(int x)
{
    TD_ENTER();
    return x + 1;
}

int events_without_site(int x)
{
    return x + 1;
}
