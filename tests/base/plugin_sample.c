/* tests/base/plugin_sample.c: a plug-in with nothing in it, built with the right and with a wrong table version.
 */
#include <plugin_abi.h>
#include <stdio.h>

TD_API const td_plugin *td_plugin_v1(const td_host *host);

static const char *describe(char *into, size_t size)
{
    snprintf(into, size, "sample");
    return into;
}

static const td_plugin sample = { .abi = SAMPLE_ABI, .name = "sample", .describe = describe };

const td_plugin *td_plugin_v1(const td_host *host)
{
    if (host->abi != TD_PLUGIN_ABI || host->now() <= 0)
        return NULL;
    void *block = host->alloc(100);
    host->free(block);
    return block && host->timeout() > 0 ? &sample : NULL;
}
