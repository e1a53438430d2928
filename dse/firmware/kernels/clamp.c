static inline int8_t clamp(int32_t value, int32_t low, int32_t high)
{
    value = value < low ? low : value;
    value = value > high ? high : value;
    return (int8_t)value;
}
