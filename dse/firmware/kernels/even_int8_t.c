/* needs: dsp */
/* Of four int8 values: the first and third; then the second and fourth of two rows, and move on. */
ALWAYS_INLINE uint32_t even_int8_t(const int8_t **from)
{
    return even_bytes(load_word(*from));
}

ALWAYS_INLINE void odd_int8_t(const int8_t **a, const int8_t **b, uint32_t *odd_a, uint32_t *odd_b)
{
    const uint8_t *at_a = (const uint8_t *)*a, *at_b = (const uint8_t *)*b;
    const uint32_t word_a = next_word(&at_a), word_b = next_word(&at_b);
    *a = (const int8_t *)at_a;
    *b = (const int8_t *)at_b;
    *odd_a = odd_bytes(word_a);
    *odd_b = odd_bytes(word_b);
}
