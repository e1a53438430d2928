/* needs: dsp */
/* Columns hold each four values in the order first, third, second, fourth. */
ALWAYS_INLINE uint32_t even_int16_t(const int16_t **from)
{
    const uint8_t *at = (const uint8_t *)*from;
    const uint32_t pair = next_word(&at);
    *from = (const int16_t *)(const void *)at;
    return pair;
}

ALWAYS_INLINE void odd_int16_t(const int16_t **a, const int16_t **b, uint32_t *odd_a,
                               uint32_t *odd_b)
{
    *odd_a = even_int16_t(a);
    *odd_b = even_int16_t(b);
}
