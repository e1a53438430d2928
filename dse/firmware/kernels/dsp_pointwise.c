/* needs: block */
/* 1x1 convolution: two pixels at a time; `bias` holds bias - input_zero * sum(weights). */
static void dsp_pointwise_$layout$suffix(const $element *input, $element *output, const window *g,
                                  const uint8_t *weights, const int32_t *bias,
                                  const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->input_channels, channels = g->output_channels;
    for (int32_t left = g->output_height * g->output_width; left > 0; left -= 2) {
        const int32_t other = left > 1 ? 1 : 0; /* the last one is done twice */
        ${value}_pixels_$layout(input, input + other * depth, output, output + other * channels,
                               depth, g, weights, bias, multiplier, right);
        input += 2 * depth;
        output += 2 * channels;
    }
}
