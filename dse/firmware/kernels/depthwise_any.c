/* needs: window taps clamp $requantize weight_$layout */
/* Depthwise convolution, weights (O, H, W); output channel o reads input channel o / multiple. */
static void depthwise_any_$layout$suffix$wide(const $element *input, $element *output, const window *g,
                              const uint8_t *weights, const int32_t *bias,
                              const int32_t *multiplier, const int8_t *right)
{
    const int32_t multiple = g->output_channels / g->input_channels;
    const int32_t bytes = (g->kernel_height * g->kernel_width * $bits + 7) >> 3;
    const int32_t step_x = g->dilation_x * g->input_channels;
    const int32_t step_y = g->dilation_y * g->input_width * g->input_channels;
    for (int32_t y = 0; y < g->output_height; y++) {
        const int32_t top = y * g->stride_y - g->top;
        const taps rows = met(top, g->dilation_y, g->kernel_height, g->input_height);
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t left = x * g->stride_x - g->left;
            const taps columns = met(left, g->dilation_x, g->kernel_width, g->input_width);
            const int32_t corner = (top * g->input_width + left) * g->input_channels +
                                   rows.first * step_y + columns.first * step_x;
            const uint8_t *row = weights;
            int32_t channel = 0, use = 0;
            for (int32_t o = 0; o < g->output_channels; o++) {
                $sum sum = bias[o];
                for (int32_t ky = rows.first; ky < rows.last; ky++) {
                    int32_t at = corner + channel + (ky - rows.first) * step_y;
                    int32_t tap = ky * g->kernel_width + columns.first;
                    for (int32_t kx = columns.first; kx < columns.last; kx++) {
                        sum += (input[at] - g->input_zero) * weight_$layout(row, tap++);
                        at += step_x;
                    }
                }
                sum = $requantize(sum, multiplier[o], right[o]) + g->output_zero;
                *output++ = clamp(${narrow}sum, g->low, g->high);
                row += bytes;
                if (++use == multiple) {
                    use = 0;
                    channel++;
                }
            }
        }
    }
}
