/* needs: window clamp mve $requantize requantize_four */
/* What a layer needs to make outputs of sums, from one output channel on. */
typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *right;
    int32_t zero, low, high;
} mve_outputs;

/* At most four sums of `count` channels to outputs. */
ALWAYS_INLINE void finish_four(const int32_t *sums, $element *output, int32_t count, int32_t from,
                               const mve_outputs *of)
{
    const int32_t *const bias = of->bias + from, *const multiplier = of->multiplier + from;
    const int8_t *const right = of->right + from;
#if defined(HELIUM)
    if (count >= 4) {
        int32x4_t value = vaddq_s32(vldrwq_s32(sums), vldrwq_s32(bias));
        value = requantize_four(value, vldrwq_s32(multiplier), vldrbq_s32(right));
        value = vaddq_n_s32(value, of->zero);
        value = vmaxq_s32(value, vdupq_n_s32(of->low));
        value = vminq_s32(value, vdupq_n_s32(of->high));
        vstr${unit}q_s32(output + from, value);
        return;
    }
#endif
    for (int32_t i = 0; i < 4 && i < count; i++) {
        const int32_t value = $requantize(sums[i] + bias[i], multiplier[i], right[i]);
        output[from + i] = clamp(value + of->zero, of->low, of->high);
    }
}
