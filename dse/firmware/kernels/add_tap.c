/* needs: dsp */
/* What four channels have summed up. */
typedef struct {
    int32_t sum0, sum1, sum2, sum3;
} four_sums;

ALWAYS_INLINE void add_tap(four_sums *s, const int8_t *from, const uint8_t *weight, int32_t at,
                           uint32_t both)
{
    uint32_t values = word_at(from, at), factors = word_at(weight, at);
    const uint32_t even = even_bytes_plus(both, values), pair = even_bytes(factors);
    s->sum0 = multiply_low(even, pair, s->sum0);
    s->sum2 = multiply_high(even, pair, s->sum2);
    values = odd_bytes_plus(both, values);
    factors = odd_bytes(factors);
    s->sum1 = multiply_low(values, factors, s->sum1);
    s->sum3 = multiply_high(values, factors, s->sum3);
}
