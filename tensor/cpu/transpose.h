/* tensor/cpu/transpose.h: a square tile of elements in the first cache, turned over. Elements of 4 bytes go through the registers, eight by eight;
 * others one by one.
 */
#ifndef TD_TRANSPOSE_H
#define TD_TRANSPOSE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TD_TILE = 32, TD_TILE_LINE = TD_TILE + 8 };   /* elements of a line, and from one line to the next: not a multiple of what cache sets repeat by */

typedef int32_t td__eight __attribute__((vector_size(32)));

/* out[j][i] = in[i][j] for i, j < 8. Each stage exchanges blocks of 1, 2 and 4 elements across the diagonal. */
static inline void td__turn_eight(const int32_t *in, int32_t *out)
{
    td__eight a[8], b[8];
    for (int i = 0; i < 8; i++)
        memcpy(&a[i], in + i * TD_TILE_LINE, sizeof a[i]);
    for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shuffle(a[i], a[i + 1], (td__eight){ 0, 8, 2, 10, 4, 12, 6, 14 });
        b[i + 1] = __builtin_shuffle(a[i], a[i + 1], (td__eight){ 1, 9, 3, 11, 5, 13, 7, 15 });
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            a[i + k] = __builtin_shuffle(b[i + k], b[i + k + 2], (td__eight){ 0, 1, 8, 9, 4, 5, 12, 13 });
            a[i + k + 2] = __builtin_shuffle(b[i + k], b[i + k + 2], (td__eight){ 2, 3, 10, 11, 6, 7, 14, 15 });
        }
    for (int k = 0; k < 4; k++) {
        b[k] = __builtin_shuffle(a[k], a[k + 4], (td__eight){ 0, 1, 2, 3, 8, 9, 10, 11 });
        b[k + 4] = __builtin_shuffle(a[k], a[k + 4], (td__eight){ 4, 5, 6, 7, 12, 13, 14, 15 });
    }
    for (int i = 0; i < 8; i++)
        memcpy(out + i * TD_TILE_LINE, &b[i], sizeof b[i]);
}

#define TD_TURN(name, T)                                                                                     \
    static inline void td__turn_##name(int64_t rows, int64_t columns, const T *in, T *out)                   \
    {                                                                                                        \
        for (int64_t j = 0; j < columns; j++)                                                                \
            for (int64_t i = 0; i < rows; i++)                                                               \
                out[j * TD_TILE_LINE + i] = in[i * TD_TILE_LINE + j];                                        \
    }
TD_TURN(1, uint8_t)
TD_TURN(2, uint16_t)
TD_TURN(8, uint64_t)

/* `rows` lines of `columns` elements, up to a tile of both, become as many lines of rows. Elements beyond them may be turned, too. */
static inline void td__turn_tile(size_t size, int64_t rows, int64_t columns, const void *in, void *out)
{
    switch (size) {
    case 1: td__turn_1(rows, columns, in, out); break;
    case 2: td__turn_2(rows, columns, in, out); break;
    case 8: td__turn_8(rows, columns, in, out); break;
    default:
        for (int64_t i = 0; i < rows; i += 8)
            for (int64_t j = 0; j < columns; j += 8)
                td__turn_eight((const int32_t *)in + i * TD_TILE_LINE + j, (int32_t *)out + j * TD_TILE_LINE + i);
    }
}
#endif
