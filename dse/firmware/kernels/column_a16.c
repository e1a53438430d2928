/* needs: window inside dsp keep_loop */
/* The window of one output pixel; padding is zero. */
static void fill_column(const int16_t *input, int16_t *column, const window *g, int32_t top,
                        int32_t left)
{
    const int32_t channels = g->input_channels;
    for (int32_t ky = 0; ky < g->kernel_height; ky++) {
        const int32_t row = top + ky * g->dilation_y;
        for (int32_t kx = 0; kx < g->kernel_width; kx++) {
            const int32_t at = left + kx * g->dilation_x;
            const int covered = inside(row, g->input_height) && inside(at, g->input_width);
            const int16_t *from = input + (covered ? row * g->input_width + at : 0) * channels;
            if (!covered) {
                for (int32_t c = 0; c < channels; c++) {
                    column[c] = 0;
                    KEEP_LOOP();
                }
            } else {
                for (int32_t c = 0; c < channels; c++) {
                    column[c] = from[c];
                    KEEP_LOOP();
                }
            }
            column += channels;
        }
    }
}
