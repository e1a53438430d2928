/* needs: dsp */
/*
 * Four int8 values as one register holds them: the first and third, then the second and fourth.
 * These take the last register: where a row of weights ends lies on the stack.
 */
typedef const uint8_t *volatile end_int8_t;

ALWAYS_INLINE uint32_t even_int8_t(uint32_t held)
{
    return even_bytes(held);
}

ALWAYS_INLINE uint32_t odd_int8_t(uint32_t held, const uint8_t **from)
{
    (void)from;
    return odd_bytes(held);
}
