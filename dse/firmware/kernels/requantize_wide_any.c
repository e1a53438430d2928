/*
 * x * multiplier * 2^(-31 - right), rounded once as for int64 sums in CMSIS-NN and TensorFlow Lite;
 * |x| < 2^47, `right` < 0 shifts left.
 */
static inline int32_t requantize_wide(int64_t x, int32_t multiplier, int32_t right)
{
    const int32_t shift = 15 + right;
    const int64_t low = ((x & 0xFFFF) * multiplier) >> 16;
    const int64_t sum = (x >> 16) * multiplier + low;
    const int64_t value = (sum + ((int64_t)1 << (shift - 1))) >> shift;
    return (int32_t)(value < INT32_MIN ? INT32_MIN : value > INT32_MAX ? INT32_MAX : value);
}
