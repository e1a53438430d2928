/* x * multiplier * 2^(-31 - right), rounded once as XNNPACK does; |x| < 2^29, 0 <= right <= 30. */
static inline int32_t requantize(int32_t x, int32_t multiplier, int32_t right)
{
    const int32_t twice = (int32_t)(((int64_t)x * multiplier) >> 30);
    return (twice + (1 << right)) >> (right + 1);
}
