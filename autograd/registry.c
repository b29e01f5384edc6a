/* autograd/registry.c: every operation of the library, in one array that ends with NULL. Tests walk it and fail where an
 * operation lacks a reference or a gradient check.
 */
#include "ops_list.h"

#define TD_OP_ROW(name) &td__op_##name,
static const td_op *const registry[] = { TD_OP_LIST(TD_OP_ROW) NULL };

const td_op *const *td_op_registry(void)
{
    return registry;
}
