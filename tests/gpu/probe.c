/* Is there a GPU that the plug-in can use? Its line for tandem doctor, or the sentence why not and 77. */
#include "gpu.h"
#include <plugin_abi.h>

int main(void)
{
    char why[300], text[300];
    need_gpu();
    const td_plugin *plugin = td__plugin_open("cuda", why, sizeof why);
    printf("%s\n", plugin ? plugin->describe(text, sizeof text) : why);
    return plugin ? 0 : 1;
}
