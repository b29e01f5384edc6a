/* tests/fuzz/fuzz_npz.c: any bytes as an npz file: opened, listed, every array's every byte touched. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    td_errors(TD_ERRORS_RETURN);
    TD_SCOPE();
    int fd;
    td_npz *f = td_npz_open(fuzz_file(data, size, &fd), &(td_npz_opts){ .max_bytes = 1 << 20 });
    size_t n = td_error_pending() ? 0 : td_npz_count(f);
    volatile unsigned sum = 0;
    for (size_t i = 0; i < n; i++) {
        td_tensor *x = td_npz_get(f, td_npz_name(f, i));
        if (td_is_poisoned(x)) {
            if (td_error_pending() == TD_ERR_ARGUMENT)
                abort();                       /* a name that is listed must be found */
            td_error_clear();
            continue;
        }
        const unsigned char *bytes = td_data(x);
        for (size_t k = 0; k < (size_t)td_numel(x) * td_dtype_size(td_dtype_of(x)); k++)
            sum += bytes[k];
    }
    td_npz_free(f);
    fuzz_done(fd);
    return 0;
}
