/* tests/base/callsite_library.c: public functions in a shared object named as the real one, for test_callsite.
 */
#include <base.h>
#include "callsite_library.h"

int site_inner(void)
{
    TD_ENTER();
    return td__fail(TD_ERR_STATE, "site_inner: no");
}

int site_outer(void)
{
    TD_ENTER();
    int code = site_inner();                   /* its return address lies in this library: the user's line must stay */
    return code;
}

uint64_t site_range(void)
{
    return td__text_size;
}
