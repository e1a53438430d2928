/* needs: dsp dsp_halves */
/* What four channels have summed up. */
typedef struct {
    int32_t sum0, sum1, sum2, sum3;
} four_sums;

ALWAYS_INLINE void add_tap(four_sums *s, const int16_t *from, const uint8_t *weight, int32_t at,
                           uint32_t both)
{
    (void)both;
    const uint32_t factors = word_at(weight, at);
    const uint32_t even = even_bytes(factors), odd = odd_bytes(factors);
    uint32_t values = word_at(from, 2 * at);
    s->sum0 = multiply_low(values, even, s->sum0);
    s->sum1 = multiply_high_low(values, odd, s->sum1);
    values = word_at(from + 2, 2 * at);
    s->sum2 = multiply_low_high(values, even, s->sum2);
    s->sum3 = multiply_high(values, odd, s->sum3);
}
