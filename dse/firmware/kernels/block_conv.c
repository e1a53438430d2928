/* needs: rolled window inside clamp $requantize block_$form block_list block_edge block_values */
/*
 * Convolution with weights in blocks of $rows rows by `width` columns, of which a bit in `map` says
 * whether it is kept; a fully connected layer is one 1x1 window. The kept blocks of $rows output
 * channels are listed in `scratch`, and unpacked behind the list unless they have 8 bits; then every
 * window is multiplied with them. `bias` holds bias - input_zero * sum(weights).
 */
static void block_conv_$form$suffix$wide(const $element *input, $element *output, uint16_t *scratch,
                      const window *g, int32_t width, int32_t bits, const uint8_t *map,
                      const uint8_t *values, const int32_t *bias, const int32_t *multiplier,
                      const int8_t *right)
{
    const int32_t channels = g->output_channels, inputs = g->input_channels;
    const int32_t kernel_height = g->kernel_height, run = g->kernel_width * inputs;
    const int32_t line = g->dilation_y * g->input_width * inputs; /* between rows of a window */
    const int32_t reach = (kernel_height - 1) * g->dilation_y;
    uint16_t *const starts = scratch, *const list = scratch + kernel_height + 1;
    int32_t done = 0; /* kept blocks */
    for (int32_t o = 0; o < channels; o += $rows) {
        const int32_t rows = channels - o < $rows ? channels - o : $rows, first = done;
        const int8_t *weights = (const int8_t *)values + first * $rows * width;
        list_blocks(&map, list, starts, kernel_height, kernel_height * run, width, $step, &done);
        if (bits != 8) {
            int8_t *const unpacked = (int8_t *)(list + starts[kernel_height]);
            block_values(values, bits, $rows * width, first, done - first, unpacked);
            weights = unpacked;
        }
        $element *to = output + o;
        int32_t top = -g->top;
        for (int32_t y = 0; y < g->output_height; y++, top += g->stride_y) {
            const int tall = top >= 0 && top + reach < g->input_height;
            int32_t left = -g->left;
            for (int32_t x = 0; x < g->output_width; x++, left += g->stride_x, to += channels) {
                const int whole = g->dilation_x == 1 && left >= 0 &&
                                  left + g->kernel_width <= g->input_width;
                int32_t base = (top * g->input_width + left) * inputs;
                $sum sums[$rows] = {0};
                ROLLED
                for (int32_t i = 0; i < rows; i++) {
                    sums[i] = bias[o + i];
                }
                if (whole && tall) {
                    ROLLED
                    for (int32_t ky = 0; ky < kernel_height; ky++, base += line - run) {
                        const int32_t at = starts[ky];
                        multiply_$form$wide(sums, input, base, list + at,
                                            weights + at * $rows * $step, starts[ky + 1] - at);
                    }
                } else {
                    const block_list blocks = {list, starts, weights};
                    block_edge_$form$suffix$wide(input, g, &blocks, top, left, sums);
                }
                ROLLED
                for (int32_t i = 0; i < rows; i++) {
                    const $sum sum = $requantize(sums[i], multiplier[o + i], right[o + i]);
                    to[i] = clamp(${narrow}(sum + g->output_zero), g->low, g->high);
                }
            }
        }
    }
}
