/* base/store.h: the meeting-point store: a small authenticated key-value service. One process serves, others set and wait for keys.
 * Unix socket (abstract name) on one machine, TCP beyond. Both ends prove that they know the job's secret before anything else is
 * read (challenge and response, HMAC by libsodium); a Unix peer's user id is checked too. Keys up to 255 bytes, values up to 64 KiB.
 */
#ifndef TD_STORE_H
#define TD_STORE_H
#include "base.h"

typedef struct td__store_server td__store_server;
typedef struct td__store td__store;
/* where: "unix:@NAME", or "tcp:HOST:0" (bound to HOST alone; the port is chosen). One thread serves. NULL after td__fail. */
td__store_server *td__store_serve(const char *where, const unsigned char secret[32]);
const char *td__store_address(const td__store_server *server);          /* with the port, to hand to clients               */
void td__store_stop(td__store_server *server);
/* without waiting, and no td__fail: TD_ERR_STATE when nobody has set it yet */
int  td__store_server_get(td__store_server *server, const char *key, void *into, size_t *size);

td__store *td__store_connect(const char *address, const unsigned char secret[32], double timeout_s);  /* NULL after td__fail */
void td__store_close(td__store *store);
int  td__store_set(td__store *store, const char *key, const void *value, size_t size);
/* waits until the key is set or the deadline passes; *size: room in, bytes out */
int  td__store_get(td__store *store, const char *key, void *into, size_t *size, double timeout_s);
int  td__store_add(td__store *store, const char *key, int64_t delta, int64_t *now);               /* counters from 0         */
#endif
