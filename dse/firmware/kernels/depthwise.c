/* needs: window taps clamp $requantize tap_$layout */
/* Depthwise convolution of four channels and more, four at a time (the last four may overlap). */
static void depthwise_$layout$suffix$wide(const $element *input, $element *output, const window *g,
                              const uint8_t *weights, const int32_t *bias,
                              const int32_t *multiplier, const int8_t *right)
{
    const int32_t channels = g->input_channels, zero = g->input_zero;
    const int32_t bytes = (g->kernel_height * g->kernel_width * $bits + 7) >> 3;
    const int32_t step = g->dilation_x * channels;
    for (int32_t y = 0; y < g->output_height; y++) {
        const int32_t top = y * g->stride_y - g->top;
        const taps rows = met(top, g->dilation_y, g->kernel_height, g->input_height);
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t left = x * g->stride_x - g->left;
            const taps columns = met(left, g->dilation_x, g->kernel_width, g->input_width);
            const int32_t column = left + columns.first * g->dilation_x;
            for (int32_t c = 0; c < channels; c += 4) {
                c = c + 4 > channels ? channels - 4 : c;
                $sum sum[4], sum0 = bias[c], sum1 = bias[c + 1];
                $sum sum2 = bias[c + 2], sum3 = bias[c + 3];
                for (int32_t ky = rows.first; ky < rows.last; ky++) {
                    const int32_t row = top + ky * g->dilation_y;
                    const $element *from = input + (row * g->input_width + column) * channels + c;
                    int32_t tap = ky * g->kernel_width + columns.first;
                    for (int32_t kx = columns.first; kx < columns.last; kx++, tap++) {
                        sum0 += (from[0] - zero) * tap_$layout(weights, c, tap, channels, bytes);
                        sum1 += (from[1] - zero) * tap_$layout(weights, c + 1, tap, channels, bytes);
                        sum2 += (from[2] - zero) * tap_$layout(weights, c + 2, tap, channels, bytes);
                        sum3 += (from[3] - zero) * tap_$layout(weights, c + 3, tap, channels, bytes);
                        from += step;
                    }
                }
                sum[0] = sum0;
                sum[1] = sum1;
                sum[2] = sum2;
                sum[3] = sum3;
                for (int32_t i = 0; i < 4; i++) {
                    const int32_t at = c + i;
                    const int32_t value = $requantize(sum[i], multiplier[at], right[at]);
                    output[at] = clamp(value + g->output_zero, g->low, g->high);
                }
            }
            output += channels;
        }
    }
}
