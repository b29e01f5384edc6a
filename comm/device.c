/* comm/device.c: collectives of a device's own memory, which the device's library carries out on its streams.
 */
#include "comm_room.h"

td_storage *td__device_storage(td_comm *comm, td_device device, size_t bytes)
{
    (void)comm;
    td_storage *s = td__storage_new(device, bytes);
    if (!s)
        return NULL;
    td_tensor *x = td__tensor_on(s, TD_SHAPE((int64_t)bytes), TD_U8, 0);
    int code = td__tensor_check("td_zeros_shared", x);
    code = code ? code : td__fill(x, 0);
    td__tensor_unref(x);
    if (!code)
        return s;
    td__storage_unref(s);
    return NULL;
}
