/* needs: rolled */
/* Listed weights of an output channel, 4 columns at a time, the channels of a column side by side. */
static inline void multiply_1x4$wide($sum *sums, const $element *input, int32_t base,
                                     const uint16_t *list, const int8_t *weights,
                                     int32_t count)
{
    $sum sum0 = sums[0];
    ROLLED
    for (; count > 0; count--, weights += 4) {
        const $element *from = input + (base + *list++);
        sum0 += from[0] * weights[0];
        sum0 += from[1] * weights[1];
        sum0 += from[2] * weights[2];
        sum0 += from[3] * weights[3];
    }
    sums[0] = sum0;
}
