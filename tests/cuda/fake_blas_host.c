/* tests/cuda/fake_blas_host.c: what plugins/cuda/blas*.c asks of device.c: the library's services, the GPU's number.
 */
#include "../../plugins/cuda/cuda_impl.h"

const td_host *cuda_host = &td__host;
int cuda_index(void) { return 0; }
