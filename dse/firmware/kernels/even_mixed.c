/* needs: dsp */
/*
 * Two columns word by word: the first and third of each four values of one pixel, those of the
 * other, then both their second and fourth. One pointer serves both, so no register is missing.
 */
typedef int16_t mixed;
typedef const uint8_t *end_mixed;

ALWAYS_INLINE void load_mixed(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                              uint32_t *b)
{
    (void)from_b;
    next_words(from_a, a, b);
}

ALWAYS_INLINE uint32_t even_mixed(uint32_t held)
{
    return held;
}

ALWAYS_INLINE void odd_mixed(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                             uint32_t *b)
{
    load_mixed(from_a, from_b, a, b);
}

ALWAYS_INLINE int32_t place_mixed(int32_t index)
{
    return 2 * index - (index & 1);
}
