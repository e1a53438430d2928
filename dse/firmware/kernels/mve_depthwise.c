/* needs: mve_finish */
/* The taps of a pixel that meet the input, and what lies between two of them. */
typedef struct {
    int32_t rows, columns;
    int32_t input_step;               /* elements from a tap to the next; weights: `channels` */
    int32_t input_back, weights_back; /* from behind a row of taps to the next row */
    int32_t channels, zero;
} mve_taps;

#if defined(HELIUM)
/* Eight channels of one pixel, from channel c on: 32 bits in even and odd lanes. */
ALWAYS_INLINE void depthwise_eight(const $element *from, const int8_t *weights, $element *output,
                                   int32_t c, const mve_taps *at, const mve_outputs *of)
{
    int32x4x2_t sums = vld2q_s32(of->bias + c);
    for (int32_t row = at->rows; row > 0; row--) {
        for (int32_t column = at->columns; column > 0; column--) {
            const int16x8_t values = vsubq_n_s16(vldr${unit}q_s16(from), (int16_t)at->zero);
            const int16x8_t factors = vldrbq_s16(weights);
            sums.val[0] = vaddq_s32(sums.val[0], vmullbq_int_s16(values, factors));
            sums.val[1] = vaddq_s32(sums.val[1], vmulltq_int_s16(values, factors));
            from += at->input_step;
            weights += at->channels;
        }
        from += at->input_back;
        weights += at->weights_back;
    }
    const int32x4x2_t multiplier = vld2q_s32(of->multiplier + c);
    const int16x8_t right = vldrbq_s16(of->right + c);
    sums.val[0] = requantize_four(sums.val[0], multiplier.val[0], vmovlbq_s16(right));
    sums.val[1] = requantize_four(sums.val[1], multiplier.val[1], vmovltq_s16(right));
    int16x8_t found = vqmovnbq_s32(vdupq_n_s16(0), sums.val[0]);
    found = vqaddq_n_s16(vqmovntq_s32(found, sums.val[1]), (int16_t)of->zero);
    found = vmaxq_s16(found, vdupq_n_s16((int16_t)of->low));
    vstr${unit}q_s16(output + c, vminq_s16(found, vdupq_n_s16((int16_t)of->high)));
}
#else
ALWAYS_INLINE void depthwise_eight(const $element *from, const int8_t *weights, $element *output,
                                   int32_t c, const mve_taps *at, const mve_outputs *of)
{
    int32_t sums[8];
    for (int32_t i = 0; i < 8; i++) {
        int32_t place = i, tap = i;
        sums[i] = 0;
        for (int32_t row = at->rows; row > 0; row--) {
            for (int32_t column = at->columns; column > 0; column--) {
                sums[i] += (from[place] - at->zero) * weights[tap];
                place += at->input_step;
                tap += at->channels;
            }
            place += at->input_back;
            tap += at->weights_back;
        }
    }
    finish_four(sums, output, 4, c, of);
    finish_four(sums + 4, output, 4, c + 4, of);
}
#endif

/* All channels of one pixel: a function of its own, for its registers' sake. */
static NO_INLINE void mve_depthwise_pixel(const $element *from, const uint8_t *weights,
                                          $element *output, const mve_taps *shape,
                                          const mve_outputs *outputs)
{
    const mve_taps at = *shape;
    const mve_outputs of = *outputs;
    const int8_t *const weight = (const int8_t *)weights;
    for (int32_t c = 0; c < at.channels; c += 8) {
        c = c + 8 > at.channels ? at.channels - 8 : c;
        depthwise_eight(from + c, weight + c, output, c, &at, &of);
    }
}

/* The taps of a window along one axis that meet the input: first <= tap < last. */
typedef struct {
    int32_t first, last;
} mve_axis;

/* By division: compilers make long vector code of a loop that counts. */
ALWAYS_INLINE mve_axis mve_met(int32_t start, int32_t dilation, int32_t kernel, int32_t size)
{
    const int32_t reached = (size - 1 - start) / dilation + 1;
    const mve_axis found = {start < 0 ? (dilation - 1 - start) / dilation : 0,
                            start >= size ? 0 : reached < kernel ? reached : kernel};
    return found;
}

/*
 * Depthwise convolution of eight channels and more, weights of 8 bits (H, W, O): eight channels of
 * a tap at a time (the last eight may overlap).
 */
static void mve_depthwise$suffix(const $element *input, $element *output, const window *g,
                                 const uint8_t *weights, const int32_t *bias,
                                 const int32_t *multiplier, const int8_t *right)
{
    const int32_t channels = g->input_channels;
    const mve_outputs of = {bias, multiplier, right, g->output_zero, g->low, g->high};
    mve_taps taps = {0, 0, g->dilation_x * channels, 0, 0, channels, g->input_zero};
    for (int32_t y = 0; y < g->output_height; y++) {
        const int32_t top = y * g->stride_y - g->top;
        const mve_axis rows = mve_met(top, g->dilation_y, g->kernel_height, g->input_height);
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t left = x * g->stride_x - g->left;
            const mve_axis columns = mve_met(left, g->dilation_x, g->kernel_width, g->input_width);
            const int some = rows.last > rows.first && columns.last > columns.first;
            const int32_t row = some ? top + rows.first * g->dilation_y : 0;
            const int32_t column = some ? left + columns.first * g->dilation_x : 0;
            const int32_t tap = some ? rows.first * g->kernel_width + columns.first : 0;
            taps.rows = some ? rows.last - rows.first : 0;
            taps.columns = columns.last - columns.first;
            taps.input_back =
                (g->dilation_y * g->input_width - taps.columns * g->dilation_x) * channels;
            taps.weights_back = (g->kernel_width - taps.columns) * channels;
            mve_depthwise_pixel(input + (row * g->input_width + column) * channels,
                                weights + tap * channels, output, &taps, &of);
            output += channels;
        }
    }
}
