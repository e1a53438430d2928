/* needs: window inside clamp_f32 */
/* Maximum of each window, padding left out. */
static void max_pool_f32(const float *input, float *output, const window *g, float low, float high)
{
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            for (int32_t c = 0; c < g->input_channels; c++) {
                float largest = -3.402823466e+38F;
                for (int32_t ky = 0; ky < g->kernel_height; ky++) {
                    const int32_t row = y * g->stride_y - g->top + ky;
                    for (int32_t kx = 0; kx < g->kernel_width; kx++) {
                        const int32_t column = x * g->stride_x - g->left + kx;
                        if (inside(row, g->input_height) && inside(column, g->input_width)) {
                            const int32_t pixel = row * g->input_width + column;
                            const float value = input[pixel * g->input_channels + c];
                            largest = value > largest ? value : largest;
                        }
                    }
                }
                *output++ = clamp_f32(largest, low, high);
            }
        }
    }
}
