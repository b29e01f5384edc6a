/* tandem/plugin.h: transports and devices that live in their own shared object. Opaque here: a plug-in is built with Tandem.
 */
#ifndef TANDEM_PLUGIN_H
#define TANDEM_PLUGIN_H
#include <tandem/error.h>
typedef struct td_plugin td_plugin;
typedef struct td_host td_host;
#endif
