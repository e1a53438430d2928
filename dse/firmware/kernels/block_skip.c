/* needs: rolled */
/* Columns of weights that meet no input but its zero point. */
static void skip_blocks$wide($sum *sums, int32_t rows, const int8_t *weights, int32_t columns,
                             int32_t zero)
{
    const int8_t *const end = weights + columns * rows;
    ROLLED
    for (int32_t i = 0; i < rows; i++) {
        int32_t total = 0;
        for (const int8_t *next = weights + i; next < end; next += rows) {
            total += *next;
        }
        sums[i] += zero * total;
    }
}
