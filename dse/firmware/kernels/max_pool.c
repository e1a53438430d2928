/* needs: window inside clamp keep_loop */
/* Maximum of each window, padding left out. */
static void max_pool$suffix(const $element *input, $element *output, const window *g)
{
    const int32_t channels = g->input_channels;
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t top = y * g->stride_y - g->top;
            const int32_t left = x * g->stride_x - g->left;
            for (int32_t c = 0; c < channels; c++) {
                output[c] = $lowest;
                KEEP_LOOP();
            }
            for (int32_t ky = 0; ky < g->kernel_height; ky++) {
                for (int32_t kx = 0; kx < g->kernel_width; kx++) {
                    const int32_t row = top + ky, column = left + kx;
                    if (!inside(row, g->input_height) || !inside(column, g->input_width)) {
                        continue;
                    }
                    const $element *from = input + (row * g->input_width + column) * channels;
                    for (int32_t c = 0; c < channels; c++) {
                        const $element value = from[c];
                        if (value > output[c]) {
                            output[c] = value;
                        }
                    }
                }
            }
            for (int32_t c = 0; c < channels; c++) {
                output[c] = clamp(output[c], g->low, g->high);
            }
            output += channels;
        }
    }
}
