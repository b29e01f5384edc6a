#ifndef CALLSITE_LIBRARY_H
#define CALLSITE_LIBRARY_H
#include <tandem/error.h>
TD_API int      site_inner(void);
TD_API int      site_outer(void);
TD_API uint64_t site_range(void);
#endif
