/* tests/cuda/fake_blas_host.c: what plugins/cuda/blas*.c asks of its neighbours, beside the kernels' own services: memory, the library's table.
 */
#include "../../plugins/cuda/cuda_impl.h"
#include <stdlib.h>

const td_host *cuda_host = &td__host;

void *cuda_alloc(int index, size_t bytes)
{
    static char block[(32u << 20) + 512];              /* the workspace: asked for once, kept until the process ends              */
    (void)index;
    return bytes <= (32u << 20) ? block + (512 - (uintptr_t)block % 512) % 512 : NULL;
}

int cuda_index(void) { return 0; }
