/* needs: dsp */
/* Columns hold each four values in the order first, third, second, fourth: two words. */
typedef const uint8_t *end_int16_t;

ALWAYS_INLINE uint32_t even_int16_t(uint32_t held)
{
    return held;
}

ALWAYS_INLINE uint32_t odd_int16_t(uint32_t held, const uint8_t **from)
{
    (void)held;
    return next_word(from);
}
