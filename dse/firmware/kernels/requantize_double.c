/* needs: high_mul divide_by_power_of_two */
/* x * multiplier * 2^(-31 - right), rounded twice as CMSIS-NN does; no factor is 1 or more. */
static inline int32_t requantize(int32_t x, int32_t multiplier, int32_t right)
{
    return divide_by_power_of_two(high_mul(x, multiplier), right);
}
