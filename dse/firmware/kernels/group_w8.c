/* needs: dsp */
/* Weights of 8 bits come four in a word. */
enum { group_w8 = 4, scale_bits_w8 = 0 };

ALWAYS_INLINE uint32_t four_w8(uint32_t word, int32_t index)
{
    (void)index;
    return word;
}
