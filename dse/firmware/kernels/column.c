/* needs: window inside column_word keep_loop */
/* `count` int8 values, a multiple of four, as int16 less the zero point; each four reordered. */
ALWAYS_INLINE void widen(const int8_t *from, int16_t *to, int32_t count, uint32_t both)
{
    for (; count > 0; count -= 4, from += 4, to += 4) {
        const uint32_t word = load_word(from);
        store_word(to, even_bytes_plus(both, word));
        store_word(to + 2, odd_bytes_plus(both, word));
    }
}

/* The window of one output pixel as int16 less the zero point; padding is zero. */
static void fill_column(const int8_t *input, int16_t *column, const window *g, int32_t top,
                        int32_t left)
{
    const int32_t channels = g->input_channels, zero = g->input_zero;
    const int32_t depth = g->kernel_height * g->kernel_width * channels;
    const uint32_t less = (uint32_t)-zero & 0xFFFFU, both = less | less << 16;
    int16_t *to = column;
    for (int32_t ky = 0; ky < g->kernel_height; ky++) {
        const int32_t row = top + ky * g->dilation_y;
        for (int32_t kx = 0; kx < g->kernel_width; kx++) {
            const int32_t at = left + kx * g->dilation_x;
            const int covered = inside(row, g->input_height) && inside(at, g->input_width);
            const int8_t *from = input + (covered ? row * g->input_width + at : 0) * channels;
            if (!covered) {
                for (int32_t c = 0; c < channels; c++) {
                    to[c] = 0;
                    KEEP_LOOP();
                }
            } else if (channels % 4 == 0) {
                widen(from, to, channels, both);
            } else {
                for (int32_t c = 0; c < channels; c++) {
                    to[c] = (int16_t)(from[c] - zero);
                }
            }
            to += channels;
        }
    }
    if (channels % 4 != 0) {
        for (int32_t i = 0; i + 4 <= depth; i += 4) {
            const int16_t second = column[i + 1];
            column[i + 1] = column[i + 2];
            column[i + 2] = second;
        }
    }
}
