/* needs: clamp_f32 */
/* Element-wise product; `b` is read again every `period` elements (a gate a channel). */
static void mul_f32(const float *a, const float *b, float *output, int32_t elements,
                    int32_t period, float low, float high)
{
    int32_t at = 0;
    for (int32_t i = 0; i < elements; i++) {
        output[i] = clamp_f32(a[i] * b[at], low, high);
        if (++at == period) {
            at = 0;
        }
    }
}
