/* needs: dsp */
/* Weights of 2 bits come sixteen in a word: four in the lowest fields of the bytes, and so on. */
enum { group_w2 = 16, scale_bits_w2 = 6 };

ALWAYS_INLINE uint32_t four_w2(uint32_t word, int32_t index) /* each times 64 */
{
    return (word << (6 - 2 * index)) & 0xC0C0C0C0U;
}
