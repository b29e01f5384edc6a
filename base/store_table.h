/* base/store_table.h: the keys of a store server and their values. Internal to base/. Not locked: the server does that.
 */
#ifndef TD_STORE_TABLE_H
#define TD_STORE_TABLE_H
#include <stdbool.h>
#include <stddef.h>

typedef struct td__store_entry {
    struct td__store_entry *next;
    unsigned char *value;
    size_t value_size, key_size;
    unsigned char key[];
} td__store_entry;

typedef struct {
    td__store_entry *bucket[1024];
    size_t held;                               /* bytes of all entries */
} td__store_table;

td__store_entry *td__store_find(td__store_table *table, const unsigned char *key, size_t key_size);   /* NULL: not set */
/* Replaces the value; false when memory or the table's limit is used up (then the old value stays). */
bool td__store_put(td__store_table *table, const unsigned char *key, size_t key_size, const unsigned char *value, size_t size);
void td__store_clear(td__store_table *table);
#endif
