/* needs: dsp_depthwise weight_$layout */
/*
 * Weights of less than 8 bits lie (O, H, W), each channel starting on a byte. They are unpacked into
 * `scratch` as (H, W, O) once for all pixels.
 */
static void dsp_depthwise_$layout$suffix(const $element *input, $element *output, int8_t *scratch,
                                  const window *g, const uint8_t *weights, const int32_t *bias,
                                  const int32_t *multiplier, const int8_t *right)
{
    const int32_t channels = g->input_channels, count = g->kernel_height * g->kernel_width;
    const int32_t bytes = (count * $bits + 7) >> 3;
    for (int32_t c = 0; c < channels; c++) {
        int8_t *to = scratch + c;
        for (int32_t tap = 0; tap < count; tap++, to += channels) {
            *to = (int8_t)weight_$layout(weights, tap);
        }
        weights += bytes;
    }
    dsp_depthwise$suffix(input, output, g, (const uint8_t *)scratch, bias, multiplier, right);
}
