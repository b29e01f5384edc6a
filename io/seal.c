/* io/seal.c: a checksum over a whole safetensors file, inside it.
 *
 * BLAKE2b-256 of all bytes, as a hexadecimal text that is the first thing in the header's metadata, at a fixed place; while the sum is made that place
 * holds zeros. So the file stays a plain safetensors file for everybody else, and not one byte of it goes unseen.
 */
#include <sodium.h>
#include <string.h>
#include "io_impl.h"

enum { SUM = 32, HEX = 2 * SUM };
static const char before[] = "{\"__metadata__\":{\"" TD__SEAL_KEY "\":\"";
enum { AT = 8 + sizeof before - 1 };           /* of the text in the file                                                   */
const char td__seal_blank[] = "0000000000000000000000000000000000000000000000000000000000000000";

int td__seal_begin(const char *who, crypto_generichash_state *hash)
{
    if (sodium_init() < 0 || crypto_generichash_init(hash, NULL, 0, SUM) != 0)
        return td__fail(TD_ERR_INTERNAL, "%s: libsodium cannot start", who);
    return 0;
}

static void finish(crypto_generichash_state *hash, char text[static HEX + 1])
{
    unsigned char sum[SUM];
    crypto_generichash_final(hash, sum, SUM);
    sodium_bin2hex(text, HEX + 1, sum, SUM);
}

int td__seal_end(td__atomic_file *f)
{
    char text[HEX + 1];
    finish(f->hash, text);
    return td__atomic_patch(f, AT, text, HEX);
}

int td__seal_check(const char *who, const td__map *map, char text[static HEX + 1])
{
    crypto_generichash_state hash;
    if (map->size < AT + HEX || memcmp(map->data + 8, before, sizeof before - 1) != 0)
        return td__fail(TD_ERR_FORMAT, "%s: %s: is no training state: the text \"" TD__SEAL_KEY "\" does not begin its header", who, map->path);
    int rc = td__seal_begin(who, &hash);
    if (rc != 0)
        return rc;
    crypto_generichash_update(&hash, map->data, AT);
    crypto_generichash_update(&hash, (const unsigned char *)td__seal_blank, HEX);
    crypto_generichash_update(&hash, map->data + AT + HEX, map->size - AT - HEX);
    finish(&hash, text);
    if (memcmp(text, map->data + AT, HEX) != 0)
        return td__fail(TD_ERR_FORMAT, "%s: %s: its checksum is not that of its %zu bytes: the file was damaged or cut", who, map->path,
                        map->size);
    return 0;
}
