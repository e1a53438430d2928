/* needs: elementwise clamp requantize */
/* Element-wise product; `b` is read again every `period` elements (a gate a channel). */
static void mul$suffix(const $element *a, const $element *b, $element *output, int32_t period,
                const elementwise *p)
{
    int32_t at = 0;
    for (int32_t i = 0; i < p->elements; i++) {
        const int32_t product = (a[i] - p->zero_a) * (b[at] - p->zero_b);
        const int32_t value = requantize(product, p->multiplier, p->right) + p->output_zero;
        output[i] = clamp(value, p->low, p->high);
        if (++at == period) {
            at = 0;
        }
    }
}
