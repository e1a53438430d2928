/* needs: dsp */
/*
 * Four int8 values as one register holds them: the first and third, then the second and fourth.
 * These take the last register: where a row of weights ends lies on the stack.
 */
typedef const uint8_t *volatile end_int8_t;

ALWAYS_INLINE void load_int8_t(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                               uint32_t *b)
{
    *a = next_word(from_a);
    *b = next_word(from_b);
}

ALWAYS_INLINE uint32_t even_int8_t(uint32_t held)
{
    return even_bytes(held);
}

ALWAYS_INLINE void odd_int8_t(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                              uint32_t *b)
{
    (void)from_a;
    (void)from_b;
    *a = odd_bytes(*a);
    *b = odd_bytes(*b);
}

ALWAYS_INLINE int32_t place_int8_t(int32_t index)
{
    return index;
}
