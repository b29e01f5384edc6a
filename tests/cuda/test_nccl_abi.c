/* What nccl_impl.h says of NCCL's binary interface, held to NCCL's own header when this is compiled. */
#include "../../plugins/cuda/nccl_impl.h"
#include <nccl.h>
#include <stddef.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours)
SAME(NCCL_OK, ncclSuccess); SAME(NCCL_REMOTE_ERROR, ncclRemoteError); SAME(NCCL_IN_PROGRESS, ncclInProgress);
SAME(NCCL_UINT8, ncclUint8); SAME(NCCL_INT32, ncclInt32); SAME(NCCL_INT64, ncclInt64); SAME(NCCL_FLOAT16, ncclFloat16);
SAME(NCCL_FLOAT32, ncclFloat32); SAME(NCCL_FLOAT64, ncclFloat64); SAME(NCCL_BFLOAT16, ncclBfloat16);
SAME(NCCL_SUM, ncclSum); SAME(NCCL_PRODUCT, ncclProd); SAME(NCCL_MAX, ncclMax); SAME(NCCL_MIN, ncclMin); SAME(NCCL_AVG, ncclAvg); SAME(NCCL_SCALAR_HOST, ncclScalarHostImmediate);
SAME(sizeof(nccl_id), sizeof(ncclUniqueId)); SAME(sizeof(int), sizeof(ncclResult_t)); SAME(sizeof(int), sizeof(ncclRedOp_t));
SAME(offsetof(nccl_config, magic), offsetof(ncclConfig_t, magic)); SAME(offsetof(nccl_config, version), offsetof(ncclConfig_t, version));
SAME(offsetof(nccl_config, blocking), offsetof(ncclConfig_t, blocking)); SAME(offsetof(nccl_config, max_ctas), offsetof(ncclConfig_t, maxCTAs));
SAME(offsetof(nccl_config, net_name), offsetof(ncclConfig_t, netName)); SAME(offsetof(nccl_config, split_share), offsetof(ncclConfig_t, splitShare));
_Static_assert(sizeof(nccl_config) <= sizeof(ncclConfig_t), "NCCL never makes it smaller");
