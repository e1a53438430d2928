/* needs: mve_dots inside keep_loop */
ALWAYS_INLINE void copy_run(const $element *from, $element *to, int32_t count)
{
#if defined(HELIUM)
    for (; count > 0; count -= $lanes, from += $lanes, to += $lanes) {
        const mve_pred16_t some = vctp${width}q((uint32_t)count);
        vstr${unit}q_p_s$width(to, vldr${unit}q_z_s$width(from, some), some);
    }
#else
    for (int32_t i = 0; i < count; i++) {
        to[i] = from[i];
        KEEP_LOOP();
    }
#endif
}

/* The window of one output pixel, taps that lie side by side at once; padding is `zero`. */
static void mve_column$suffix(const $element *input, $element *column, const window *g,
                              int32_t top, int32_t left)
{
    const int32_t channels = g->input_channels;
    const int whole = g->dilation_x == 1 && left >= 0 && left + g->kernel_width <= g->input_width;
    const int32_t taps = whole ? g->kernel_width : 1, run = taps * channels;
    for (int32_t ky = 0; ky < g->kernel_height; ky++) {
        const int32_t row = top + ky * g->dilation_y;
        for (int32_t kx = 0; kx < g->kernel_width; kx += taps) {
            const int32_t at = left + kx * g->dilation_x;
            if (inside(row, g->input_height) && inside(at, g->input_width)) {
                copy_run(input + (row * g->input_width + at) * channels, column, run);
            } else {
                for (int32_t i = 0; i < run; i++) {
                    column[i] = ($element)g->input_zero;
                    KEEP_LOOP();
                }
            }
            column += run;
        }
    }
}

/*
 * Convolution over a column in `scratch`, the window of an output pixel; `bias` holds
 * bias - input_zero * sum(weights).
 */
static void mve_conv$suffix(const $element *input, $element *output, $element *scratch,
                            const window *g, const uint8_t *weights, const int32_t *bias,
                            const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->kernel_height * g->kernel_width * g->input_channels;
    const mve_outputs of = {bias, multiplier, right, g->output_zero, g->low, g->high};
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            mve_column$suffix(input, scratch, g, y * g->stride_y - g->top,
                              x * g->stride_x - g->left);
            mve_pixel$suffix(scratch, output, depth, g->output_channels, weights, &of);
            output += g->output_channels;
        }
    }
}
