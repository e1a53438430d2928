/*
 * x * multiplier * 2^(-31 - right), rounded once as for int64 sums in CMSIS-NN and TensorFlow Lite;
 * 2 <= right.
 */
static inline int32_t requantize_wide(int32_t x, int32_t multiplier, int32_t right)
{
    const int32_t high = (int32_t)(((int64_t)x * multiplier) >> 32);
    return (high + (1 << (right - 2))) >> (right - 1);
}
