/* needs: divide_by_power_of_two */
/* x * multiplier * 2^(-31 - right), rounded twice as CMSIS-NN does; `right` < 0 shifts left. */
static inline int32_t requantize(int32_t x, int32_t multiplier, int32_t right)
{
    const int64_t wide = right < 0 ? (int64_t)x * ((int64_t)1 << -right) : (int64_t)x;
    const int64_t high = (wide * multiplier + ((int64_t)1 << 30)) >> 31;
    const int64_t bounded = high < INT32_MIN ? INT32_MIN : high > INT32_MAX ? INT32_MAX : high;
    return divide_by_power_of_two((int32_t)bounded, right < 0 ? 0 : right);
}
