/* For tests of the plug-in's host side that have no collectives. */
#include "../../plugins/cuda/nccl_impl.h"
#include <stdio.h>

const td_device_comm nccl_comm_ops = { .name = "nccl" };

bool nccl_describe(char *into, size_t size)
{
    snprintf(into, size, "2.28.9");
    return true;
}
