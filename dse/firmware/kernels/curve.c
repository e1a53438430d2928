/* Magnitude of an input in steps of 1 / 12288, `bits` of them between two of 256 entries in Q16. */
static inline int32_t curve(int32_t x, int32_t bits, int32_t most, const uint16_t *table)
{
    const int32_t size = x < 0 ? -x : x, index = size >> bits;
    if (index >= 255) {
        return most;
    }
    const int32_t at = table[index], step = table[index + 1] - at;
    return at * (1 << bits) + (size & ((1 << bits) - 1)) * step;
}
