/* needs: window clamp */
/* Mean of each window, padding left out; halves are rounded away from zero. */
static void average_pool$suffix(const $element *input, $element *output, const window *g)
{
    const int32_t channels = g->input_channels;
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            int32_t top = y * g->stride_y - g->top, left = x * g->stride_x - g->left;
            int32_t bottom = top + g->kernel_height, end = left + g->kernel_width;
            top = top < 0 ? 0 : top;
            left = left < 0 ? 0 : left;
            bottom = bottom > g->input_height ? g->input_height : bottom;
            end = end > g->input_width ? g->input_width : end;
            const int32_t count = (bottom - top) * (end - left);
            for (int32_t c = 0; c < channels; c++) {
                int32_t sum = 0;
                for (int32_t row = top; row < bottom; row++) {
                    const $element *from = input + (row * g->input_width + left) * channels + c;
                    for (int32_t column = left; column < end; column++) {
                        sum += *from;
                        from += channels;
                    }
                }
                sum += sum > 0 ? count / 2 : -(count / 2);
                *output++ = clamp(sum / count, g->low, g->high);
            }
        }
    }
}
