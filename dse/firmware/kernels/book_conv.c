/* needs: window inside clamp $requantize pair_w8 decode_row */
/*
 * Convolution through a code book; a fully connected layer is one 1x1 window. Two rows of weights
 * are decoded into `scratch`, then every window is multiplied with them, as conv_w8 does.
 */
static void book_conv$suffix$wide(const $element *input, $element *output, int8_t *scratch,
                      const window *g, const uint8_t *codes, const int8_t *entries, int32_t bits,
                      int32_t vector, const int32_t *bias, const int32_t *multiplier,
                      const int8_t *right)
{
    const int32_t channels = g->output_channels;
    const int32_t depth = g->kernel_height * g->kernel_width * g->input_channels;
    for (int32_t o = 0; o < channels; o += 2) {
        const int32_t next = o + 1 < channels ? o + 1 : o;
        const uint8_t *row0 = (const uint8_t *)scratch, *row1 = row0 + (next - o) * depth;
        decode_row(&codes, entries, bits, vector, depth, scratch, 1);
        if (next != o) {
            decode_row(&codes, entries, bits, vector, depth, scratch + depth, 1);
        }
        $element *to = output + o;
        for (int32_t y = 0; y < g->output_height; y++) {
            for (int32_t x = 0; x < g->output_width; x++) {
                const int32_t top = y * g->stride_y - g->top;
                const int32_t left = x * g->stride_x - g->left;
                const int whole = g->dilation_x == 1 && left >= 0 &&
                                  left + g->kernel_width <= g->input_width;
                const int32_t taps = whole ? g->kernel_width : 1; /* that lie side by side */
                const int32_t run = taps * g->input_channels;
                pair$wide p = {row0, row1, 0, bias[o], bias[next]};
                for (int32_t ky = 0; ky < g->kernel_height; ky++) {
                    const int32_t row = top + ky * g->dilation_y;
                    const int covered = inside(row, g->input_height);
                    for (int32_t kx = 0; kx < g->kernel_width; kx += taps) {
                        const int32_t column = left + kx * g->dilation_x;
                        if (covered && inside(column, g->input_width)) {
                            const int32_t pixel = row * g->input_width + column;
                            multiply_w8$wide(&p, input + pixel * g->input_channels, run);
                        } else {
                            skip_w8$wide(&p, g->input_zero, run);
                        }
                    }
                }
                p.sum0 = $requantize(p.sum0, multiplier[o], right[o]) + g->output_zero;
                p.sum1 = $requantize(p.sum1, multiplier[next], right[next]) + g->output_zero;
                to[0] = clamp(${narrow}p.sum0, g->low, g->high);
                to[next - o] = clamp(${narrow}p.sum1, g->low, g->high);
                to += channels;
            }
        }
    }
}
