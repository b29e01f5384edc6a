/* tests/fuzz/fuzz_shards.c: any bytes as an index of safetensors files, beside two good shards: loaded into a module, which must not change when
 * that fails.
 */
#include "fuzz.h"
#include <string.h>

static char folder[64], path[128];

static void put(const char *name, const void *bytes, size_t n)
{
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0)
        abort();
}

static void put_shard(const char *name, const char *header)
{
    unsigned char bytes[256] = { (unsigned char)strlen(header) };
    memcpy(bytes + 8, header, strlen(header));
    put(name, bytes, 8 + strlen(header) + 4);
}

static void clean(void)
{
    static const char *const names[] = { "a", "b", "i.json" };
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void begin(void)
{
    if (*folder)
        return;
    strcpy(folder, "/dev/shm/tandem-fuzz-XXXXXX");
    if (!mkdtemp(folder))
        abort();
    atexit(clean);
    put_shard("a", "{\"weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]}}");
    put_shard("b", "{\"bias\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    td_errors(TD_ERRORS_RETURN);
    TD_SCOPE();
    begin();
    put("i.json", data, size);
    td_module *m = td_nn_linear(1, 1, NULL);
    td_fill(td_parameter_get(m, "weight"), 5);
    int rc = td_load(m, path, NULL), code = td_error_pending();
    td_error_clear();
    if (td_item(td_parameter_get(m, "weight")) != (rc == 0 ? 0 : 5))
        abort();
    if (code != rc || (rc != 0 && rc != TD_ERR_FORMAT && rc != TD_ERR_IO && rc != TD_ERR_ARGUMENT))
        abort();
    td_module_free(m);
    return 0;
}
