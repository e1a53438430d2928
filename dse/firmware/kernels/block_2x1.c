/* needs: rolled */
/* Listed weights of 2 output channels, a column at a time, the channels of a column side by side. */
static inline void multiply_2x1$wide($sum *sums, const $element *input, int32_t base,
                                     const uint16_t *list, const int8_t *weights,
                                     int32_t count)
{
    $sum sum0 = sums[0], sum1 = sums[1];
    ROLLED
    for (; count > 0; count--, weights += 2) {
        const int32_t value = input[base + *list++];
        sum0 += value * weights[0];
        sum1 += value * weights[1];
    }
    sums[0] = sum0;
    sums[1] = sum1;
}
