/* x / 2^exponent to nearest, halves away from zero (gemmlowp RoundingDivideByPOT); 0 to 31. */
static inline int32_t divide_by_power_of_two(int32_t x, int32_t exponent)
{
    const int32_t mask = (int32_t)(((uint32_t)1 << exponent) - 1U);
    const int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> exponent) + ((x & mask) > threshold);
}
