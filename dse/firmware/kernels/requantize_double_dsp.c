/* needs: dsp */
/*
 * x * multiplier * 2^(-31 - right), rounded twice as CMSIS-NN does, halves away from zero;
 * |x| < 2^30 and 1 <= right <= 31.
 */
ALWAYS_INLINE int32_t requantize(int32_t x, int32_t multiplier, int32_t right)
{
    const int32_t high = high_word(x * 2, multiplier);
    return (((high + (high >> 31)) >> (right - 1)) + 1) >> 1;
}
