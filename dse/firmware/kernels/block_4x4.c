/* needs: rolled */
/* Listed weights of 4 output channels, 4 columns at a time, the channels of a column side by side. */
static inline void multiply_4x4$wide($sum *sums, const $element *input, int32_t base,
                                     const uint16_t *list, const int8_t *weights,
                                     int32_t count)
{
    $sum sum0 = sums[0], sum1 = sums[1], sum2 = sums[2], sum3 = sums[3];
    ROLLED
    for (; count > 0; count--, weights += 16) {
        const $element *from = input + (base + *list++);
        sum0 += from[0] * weights[0];
        sum1 += from[0] * weights[1];
        sum2 += from[0] * weights[2];
        sum3 += from[0] * weights[3];
        sum0 += from[1] * weights[4];
        sum1 += from[1] * weights[5];
        sum2 += from[1] * weights[6];
        sum3 += from[1] * weights[7];
        sum0 += from[2] * weights[8];
        sum1 += from[2] * weights[9];
        sum2 += from[2] * weights[10];
        sum3 += from[2] * weights[11];
        sum0 += from[3] * weights[12];
        sum1 += from[3] * weights[13];
        sum2 += from[3] * weights[14];
        sum3 += from[3] * weights[15];
    }
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
}
