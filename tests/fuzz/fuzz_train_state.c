/* tests/fuzz/fuzz_train_state.c: any bytes as a training state: first as they are, then with the checksum put right, so that what lies behind it is
 * reached. A load that fails must leave the step, which it sets last, alone.
 */
#include "fuzz.h"
#include <sodium.h>
#include <string.h>

enum { AT = 8 + sizeof "{\"__metadata__\":{\"tandem.blake2b\":\"" - 1 };

static int read_row(void *user, int64_t row, void *const *into)
{
    *(float *)into[0] = (float)row;
    return 0;
}

static void load(const uint8_t *data, size_t size)
{
    TD_SCOPE();
    td_module *net = td_nn_linear(2, 1, NULL);
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_adamw_new(td_parameters(net), NULL);
    td_ema *ema = td_ema_new(td_parameters(net), 0.5);
    td_scaler *scaler = td_scaler_new(NULL);
    td_dataset_source source = { .rows = 10, .read = read_row, .n_fields = 1, .field = &(td_field){ TD_SCALAR, TD_F32 } };
    td_loader *loader = td_loader_new(td_dataset_new(&source, NULL), &(td_loader_opts){ .batch = 2, .seed = 1 });
    td_named extra = { "x", td_zeros(TD_SHAPE(3), TD_BOOL) };
    td_train_state state = { .model = net, .optims = &opt, .n_optims = 1, .loader = loader, .scaler = scaler, .ema = ema, .ddp = ddp, .extra = &extra,
                             .n_extra = 1, .step = -77 };
    int fd, rc = td_train_state_load(&state, fuzz_file(data, size, &fd)), code = td_error_pending();
    if (code != rc || (rc != 0 && (state.step != -77 || td_optim_steps(opt) != 0)))
        abort();
    if (rc != 0 && rc != TD_ERR_FORMAT && rc != TD_ERR_DTYPE && rc != TD_ERR_SHAPE && rc != TD_ERR_ARGUMENT)
        abort();
    td_error_clear();
    close(fd);
    td_loader_free(loader);
    td_scaler_free(scaler);
    td_ema_free(ema);
    td_optim_free(opt);
    td_ddp_free(ddp);
    td_module_free(net);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    td_errors(TD_ERRORS_RETURN);
    load(data, size);
    if (size < AT + 64 || sodium_init() < 0)
        return 0;
    uint8_t *right = malloc(size), sum[32];
    char text[65];
    if (!right)
        abort();
    memcpy(right, data, size);
    memset(right + AT, '0', 64);
    crypto_generichash(sum, sizeof sum, right, size, NULL, 0);
    sodium_bin2hex(text, sizeof text, sum, sizeof sum);
    memcpy(right + AT, text, 64);
    load(right, size);
    free(right);
    return 0;
}
