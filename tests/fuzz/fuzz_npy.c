/* tests/fuzz/fuzz_npy.c: any bytes as an npy file: loaded, every byte touched. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    td_errors(TD_ERRORS_RETURN);
    TD_SCOPE();
    int fd;
    td_tensor *x = td_npy_load(fuzz_file(data, size, &fd));
    if (!td_is_poisoned(x)) {
        volatile unsigned sum = 0;
        const unsigned char *bytes = td_data(x);
        for (size_t k = 0; k < (size_t)td_numel(x) * td_dtype_size(td_dtype_of(x)); k++)
            sum += bytes[k];
    }
    fuzz_done(fd);
    return 0;
}
