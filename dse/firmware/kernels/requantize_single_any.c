/* x * multiplier * 2^(-31 - right), rounded once as XNNPACK does; `right` < 0 shifts left. */
static inline int32_t requantize(int32_t x, int32_t multiplier, int32_t right)
{
    const int32_t shift = 31 + right;
    const int64_t value = ((int64_t)x * multiplier + ((int64_t)1 << (shift - 1))) >> shift;
    return (int32_t)(value < INT32_MIN ? INT32_MIN : value > INT32_MAX ? INT32_MAX : value);
}
