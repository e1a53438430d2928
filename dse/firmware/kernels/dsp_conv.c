/* needs: column$suffix block */
/* Convolution over two columns in `scratch`, one an output pixel. */
static void dsp_conv_$layout$suffix(const $element *input, $element *output, int16_t *scratch,
                             const window *g, const uint8_t *weights, const int32_t *bias,
                             const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->kernel_height * g->kernel_width * g->input_channels;
    const int32_t channels = g->output_channels;
    int16_t *const second = scratch + (depth + 3) / 4 * 4;
    int32_t filled = 0;
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            fill_column(input, filled == 0 ? scratch : second, g, y * g->stride_y - g->top,
                        x * g->stride_x - g->left);
            if (++filled == 2) {
                int16_t_pixels_$layout(scratch, second, output, output + channels, depth, g,
                                        weights, bias, multiplier, right);
                output += 2 * channels;
                filled = 0;
            }
        }
    }
    if (filled != 0) {
        int16_t_pixels_$layout(scratch, scratch, output, output, depth, g, weights, bias,
                                multiplier, right);
    }
}
