/* needs: dsp */
/* Columns hold each four values in the order first, third, second, fourth: two words. */
typedef const uint8_t *end_int16_t;

ALWAYS_INLINE void load_int16_t(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                                uint32_t *b)
{
    *a = next_word(from_a);
    *b = next_word(from_b);
}

ALWAYS_INLINE uint32_t even_int16_t(uint32_t held)
{
    return held;
}

ALWAYS_INLINE void odd_int16_t(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                               uint32_t *b)
{
    load_int16_t(from_a, from_b, a, b);
}

ALWAYS_INLINE int32_t place_int16_t(int32_t index)
{
    return index;
}
