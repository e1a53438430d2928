/* needs: window inside clamp $requantize weight_$layout */
/*
 * Plain (`multiple` 0) or depthwise convolution with sparse weights: one bit an element says which
 * are kept, the kept values follow each other, `first` is where those of a row start.
 */
static void sparse_$layout$suffix$wide$long(const $element *input, $element *output, const window *g, int32_t multiple,
                           const uint8_t *bitmap, const $offset *first, const uint8_t *values,
                           const int32_t *bias, const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = multiple > 0 ? 1 : g->input_channels;
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t top = y * g->stride_y - g->top;
            const int32_t left = x * g->stride_x - g->left;
            const uint8_t *next = bitmap;
            uint32_t bits = 1; /* a sentinel above the bits that are left of a byte */
            for (int32_t o = 0; o < g->output_channels; o++) {
                int32_t at = (int32_t)first[o];
                $sum sum = bias[o];
                for (int32_t ky = 0; ky < g->kernel_height; ky++) {
                    const int32_t row = top + ky * g->dilation_y;
                    for (int32_t kx = 0; kx < g->kernel_width; kx++) {
                        const int32_t column = left + kx * g->dilation_x;
                        const int covered =
                            inside(row, g->input_height) && inside(column, g->input_width);
                        const int32_t pixel = covered ? row * g->input_width + column : 0;
                        const $element *from = input + pixel * g->input_channels;
                        from += multiple > 0 ? o / multiple : 0;
                        for (int32_t c = 0; c < depth; c++) {
                            if (bits == 1) {
                                bits = 256U | *next++;
                            }
                            if ((bits & 1U) != 0) {
                                const int32_t value = covered ? from[c] - g->input_zero : 0;
                                sum += value * weight_$layout(values, at++);
                            }
                            bits >>= 1;
                        }
                    }
                }
                sum = $requantize(sum, multiplier[o], right[o]) + g->output_zero;
                *output++ = clamp(${narrow}sum, g->low, g->high);
            }
        }
    }
}
