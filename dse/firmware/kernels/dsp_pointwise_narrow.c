/* needs: block mix_pixels */
/*
 * 1x1 convolution with weights of less than 8 bits: two pixels at a time, widened into `scratch`
 * once for all output channels; `bias` holds bias - input_zero * sum(weights).
 */
static void dsp_pointwise_$layout(const int8_t *input, int8_t *output, int16_t *scratch,
                                  const window *g, const uint8_t *weights, const int32_t *bias,
                                  const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->input_channels, channels = g->output_channels;
    for (int32_t left = g->output_height * g->output_width; left > 0; left -= 2) {
        const int32_t other = left > 1 ? 1 : 0; /* the last one is done twice */
        mix_pixels(input, input + other * depth, scratch, depth);
        mixed_pixels_$layout(scratch, scratch + 2, output, output + other * channels, depth, g,
                             weights, bias, multiplier, right);
        input += 2 * depth;
        output += 2 * channels;
    }
}
