/* base/store_table.c: a plain chained hash table with a limit on what it holds, so that a client that loops on new keys
 * gets an error and does not eat the host's memory.
 */
#include "store_table.h"
#include "base.h"
#include <string.h>

static const size_t LIMIT = (size_t)256 << 20;

static td__store_entry **bucket_of(td__store_table *table, const unsigned char *key, size_t size)
{
    uint64_t hash = 1469598103934665603u;      /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ key[i]) * 1099511628211u;
    return &table->bucket[hash % TD_COUNT(table->bucket)];
}

td__store_entry *td__store_find(td__store_table *table, const unsigned char *key, size_t key_size)
{
    for (td__store_entry *e = *bucket_of(table, key, key_size); e; e = e->next)
        if (e->key_size == key_size && memcmp(e->key, key, key_size) == 0)
            return e;
    return NULL;
}

bool td__store_put(td__store_table *table, const unsigned char *key, size_t key_size, const unsigned char *value, size_t size)
{
    td__store_entry *entry = td__store_find(table, key, key_size);
    size_t added = entry ? size : sizeof *entry + key_size + size, gone = entry ? entry->value_size : 0;
    if (table->held - gone + added > LIMIT)
        return false;
    unsigned char *copy = td__alloc(size);
    if (!copy)
        return false;
    if (size)
        memcpy(copy, value, size);
    if (!entry) {
        entry = td__alloc(sizeof *entry + key_size);
        if (!entry) {
            td__free(copy);
            return false;
        }
        td__store_entry **bucket = bucket_of(table, key, key_size);
        *entry = (td__store_entry){ .next = *bucket, .key_size = key_size };
        memcpy(entry->key, key, key_size);
        *bucket = entry;
    }
    td__free(entry->value);
    entry->value = copy;
    entry->value_size = size;
    table->held += added - gone;
    return true;
}

void td__store_clear(td__store_table *table)
{
    for (size_t i = 0; i < TD_COUNT(table->bucket); i++) {
        while (table->bucket[i]) {
            td__store_entry *e = table->bucket[i];
            table->bucket[i] = e->next;
            td__free(e->value);
            td__free(e);
        }
    }
    table->held = 0;
}
