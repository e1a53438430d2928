/* needs: window inside clamp_f32 */
/* Plain (`multiple` 0) or depthwise convolution; a fully connected layer is one 1x1 window. */
static void conv_f32(const float *input, float *output, const window *g, int32_t multiple,
                     const float *weights, const float *bias, float low, float high)
{
    const int32_t depth = multiple > 0 ? 1 : g->input_channels;
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t top = y * g->stride_y - g->top;
            const int32_t left = x * g->stride_x - g->left;
            const float *weight = weights;
            for (int32_t o = 0; o < g->output_channels; o++) {
                float sum = bias[o];
                for (int32_t ky = 0; ky < g->kernel_height; ky++) {
                    const int32_t row = top + ky * g->dilation_y;
                    for (int32_t kx = 0; kx < g->kernel_width; kx++, weight += depth) {
                        const int32_t column = left + kx * g->dilation_x;
                        if (!inside(row, g->input_height) || !inside(column, g->input_width)) {
                            continue;
                        }
                        const int32_t pixel = row * g->input_width + column;
                        const float *from = input + pixel * g->input_channels;
                        from += multiple > 0 ? o / multiple : 0;
                        for (int32_t c = 0; c < depth; c++) {
                            sum += from[c] * weight[c];
                        }
                    }
                }
                *output++ = clamp_f32(sum, low, high);
            }
        }
    }
}
