/* needs: $dense decode_row */
/* Depthwise convolution through a code book: all weights are decoded into `scratch` first. */
static void book_$dense$suffix$wide(const $element *input, $element *output, int8_t *scratch,
                      const window *g, const uint8_t *codes, const int8_t *entries, int32_t bits,
                      int32_t vector, const int32_t *bias, const int32_t *multiplier,
                      const int8_t *right)
{
    const int32_t channels = g->output_channels, taps = g->kernel_height * g->kernel_width;
    for (int32_t c = 0; c < channels; c++) {
        decode_row(&codes, entries, bits, vector, taps, scratch + c * $row, $step);
    }
    ${dense}_w8$suffix$wide(input, output, g, (const uint8_t *)scratch, bias, multiplier, right);
}
