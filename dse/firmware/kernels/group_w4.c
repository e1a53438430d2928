/* needs: dsp */
/* Weights of 4 bits come eight in a word: four in the low halves of the bytes, four in the high. */
enum { group_w4 = 8, scale_bits_w4 = 4 };

ALWAYS_INLINE uint32_t four_w4(uint32_t word, int32_t index) /* each times 16 */
{
    return (word << (4 - 4 * index)) & 0xF0F0F0F0U;
}
