/* needs: rolled */
/* Listed weights of an output channel, a column at a time, the channels of a column side by side. */
static inline void multiply_1x1$wide($sum *sums, const $element *input, int32_t base,
                                     const uint16_t *list, const int8_t *weights,
                                     int32_t count)
{
    $sum sum0 = sums[0];
    ROLLED
    for (; count > 0; count--, weights += 1) {
        sum0 += input[base + *list++] * weights[0];
    }
    sums[0] = sum0;
}
