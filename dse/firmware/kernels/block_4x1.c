/* needs: rolled */
/* Listed weights of 4 output channels, a column at a time, the channels of a column side by side. */
static inline void multiply_4x1$wide($sum *sums, const $element *input, int32_t base,
                                     const uint16_t *list, const int8_t *weights,
                                     int32_t count)
{
    $sum sum0 = sums[0], sum1 = sums[1], sum2 = sums[2], sum3 = sums[3];
    ROLLED
    for (; count > 0; count--, weights += 4) {
        const int32_t value = input[base + *list++];
        sum0 += value * weights[0];
        sum1 += value * weights[1];
        sum2 += value * weights[2];
        sum3 += value * weights[3];
    }
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
}
