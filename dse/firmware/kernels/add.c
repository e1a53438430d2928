/* needs: elementwise clamp requantize */
/*
 * TensorFlow Lite's ADD with $shift more bits: `a` has the larger scale, which its common scale
 * halves exactly; `b` is requantized to it.
 */
static void add$suffix(const $element *a, const $element *b, $element *output, const elementwise *p)
{
    for (int32_t i = 0; i < p->elements; i++) {
        const int32_t wide = (b[i] - p->zero_b) * (1 << $shift);
        int32_t sum = (a[i] - p->zero_a) * (1 << $half_shift);
        sum += requantize(wide, p->multiplier_b, p->right_b);
        sum = requantize(sum, p->multiplier, p->right) + p->output_zero;
        output[i] = clamp(sum, p->low, p->high);
    }
}
