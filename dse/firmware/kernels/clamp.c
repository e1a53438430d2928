static inline $element clamp(int32_t value, int32_t low, int32_t high)
{
    value = value < low ? low : value;
    value = value > high ? high : value;
    return ($element)value;
}
