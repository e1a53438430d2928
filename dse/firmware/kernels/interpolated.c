/* `value` through a table of 513 entries over the range of int16, straight between two of them. */
static inline int32_t interpolated(int32_t value, const int16_t *table)
{
    const int16_t *const base = table + 256 + (value >> 7);
    return base[0] + (((base[1] - base[0]) * (value & 127) + 64) >> 7);
}
