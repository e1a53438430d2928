/* needs: rolled */
/* Kept blocks of some output channels: columns, where those of each row of a window start, weights. */
typedef struct {
    const uint16_t *list, *starts;
    const int8_t *weights;
} block_list;

/*
 * The columns of the kept blocks of a row of blocks, of which each has a bit in `map`, which goes on
 * behind it; of every `step` columns of a block the first. Columns past `depth` are left out. Then
 * `starts` is filled: where in the list each of `parts` runs of columns begins, and its end.
 * The number of kept blocks is added to `blocks`.
 */
static void list_blocks(const uint8_t **map, uint16_t *list, uint16_t *starts, int32_t parts,
                        int32_t depth, int32_t width, int32_t step, int32_t *blocks)
{
    const uint8_t *next = *map;
    uint16_t *end = list;
    ROLLED
    for (int32_t first = 0; first < depth; first += 8 * width) {
        int32_t column = first;
        ROLLED
        for (uint32_t bits = *next++; bits != 0; bits >>= 1, column += width) {
            if ((bits & 1U) == 0) {
                continue;
            }
            *end++ = (uint16_t)column;
            ROLLED
            for (int32_t i = step; i < width && column + i < depth; i += step) {
                *end++ = (uint16_t)(column + i);
            }
            ++*blocks;
        }
    }
    const uint16_t *at = list;
    const int32_t run = depth / parts;
    ROLLED
    for (int32_t part = 0; part < parts; part++) {
        starts[part] = (uint16_t)(at - list);
        ROLLED
        while (at < end && *at < (part + 1) * run) {
            at++;
        }
    }
    starts[parts] = (uint16_t)(end - list);
    *map = next;
}
