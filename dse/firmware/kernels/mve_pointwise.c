/* needs: mve_dots */
/* 1x1 convolution and fully connected; `bias` holds bias - input_zero * sum(weights). */
static void mve_pointwise$suffix(const $element *input, $element *output, const window *g,
                                 const uint8_t *weights, const int32_t *bias,
                                 const int32_t *multiplier, const int8_t *right)
{
    const mve_outputs of = {bias, multiplier, right, g->output_zero, g->low, g->high};
    for (int32_t left = g->output_height * g->output_width; left > 0; left--) {
        mve_pixel$suffix(input, output, g->input_channels, g->output_channels, weights, &of);
        input += g->input_channels;
        output += g->output_channels;
    }
}
