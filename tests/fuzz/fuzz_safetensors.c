/* tests/fuzz/fuzz_safetensors.c: any bytes as a safetensors file: opened, listed, every tensor's every byte touched. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    td_errors(TD_ERRORS_RETURN);
    TD_SCOPE();
    int fd;
    td_safetensors *f = td_safetensors_open(fuzz_file(data, size, &fd));
    size_t n = td_error_pending() ? 0 : td_safetensors_count(f), texts = td_error_pending() ? 0 : td_safetensors_metadata_count(f);
    volatile unsigned sum = 0;
    for (size_t i = 0; i < n; i++) {
        td_tensor *x = td_safetensors_get(f, td_safetensors_name(f, i));
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
    for (size_t i = 0; i < texts; i++)
        if (!td_safetensors_metadata(f, td_safetensors_metadata_key(f, i)))
            abort();
    td_safetensors_free(f);
    fuzz_done(fd);
    return 0;
}
