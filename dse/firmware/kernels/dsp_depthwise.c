/* needs: window taps clamp $requantize dsp add_tap$suffix */
/* What all pixels share; input and weights move by `channels` from one tap to the next. */
typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *right;
    int32_t input_row, weights_row; /* elements from one row of taps to the next */
    int32_t channels, zero, low, high;
    uint32_t both; /* the negated zero point of the input, twice */
} depthwise_layer;

/* One pixel, `rows` of taps of `width` bytes: a function of its own, for its registers' sake. */
static NO_INLINE void depthwise_pixel(const $element *input, const uint8_t *weights, $element *output,
                                      const depthwise_layer *layer, int32_t rows, int32_t width)
{
    const int32_t step = layer->channels;
    const uint32_t both = layer->both;
    const int three = width == 3 * step;
    const int32_t input_row = layer->input_row, weights_row = layer->weights_row;
    const int32_t zero = layer->zero, low = layer->low, high = layer->high;
    for (int32_t c = 0; c < step; c += 4) {
        c = c + 4 > step ? step - 4 : c;
        const $element *from = input + c;
        const uint8_t *weight = weights + c;
        const int32_t *bias = layer->bias + c, *multiplier = layer->multiplier + c;
        const int8_t *right = layer->right + c;
        four_sums s = {bias[0], bias[1], bias[2], bias[3]};
        for (int32_t row = three ? rows : 0; row > 0; row--) {
            add_tap(&s, from, weight, 0, both);
            add_tap(&s, from, weight, step, both);
            add_tap(&s, from + step, weight + step, step, both);
            from += input_row;
            weight += weights_row;
        }
        for (int32_t row = three ? 0 : rows; row > 0; row--) {
            for (int32_t at = 0; at < width; at += step) {
                add_tap(&s, from, weight, at, both);
            }
            from += input_row;
            weight += weights_row;
        }
        $element *to = output + c;
        *to++ = clamp($requantize(s.sum0, *multiplier++, *right++) + zero, low, high);
        *to++ = clamp($requantize(s.sum1, *multiplier++, *right++) + zero, low, high);
        *to++ = clamp($requantize(s.sum2, *multiplier++, *right++) + zero, low, high);
        *to = clamp($requantize(s.sum3, *multiplier, *right) + zero, low, high);
    }
}

/*
 * Depthwise convolution of four channels and more without dilation, weights of 8 bits (H, W, O):
 * four channels of a tap are one word of inputs and one of weights (the last four may overlap).
 */
static void dsp_depthwise$suffix(const $element *input, $element *output, const window *g,
                          const uint8_t *weights, const int32_t *bias, const int32_t *multiplier,
                          const int8_t *right)
{
    const int32_t channels = g->input_channels;
    const uint32_t less = (uint32_t)-g->input_zero & 0xFFFFU;
    const depthwise_layer layer = {bias, multiplier, right, g->input_width * channels,
                                   g->kernel_width * channels, channels, g->output_zero, g->low,
                                   g->high, less | less << 16};
    for (int32_t y = 0; y < g->output_height; y++) {
        const int32_t top = y * g->stride_y - g->top;
        const taps rows = met(top, 1, g->kernel_height, g->input_height);
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t left = x * g->stride_x - g->left;
            const taps columns = met(left, 1, g->kernel_width, g->input_width);
            const int32_t pixel = (top + rows.first) * g->input_width + left + columns.first;
            const int32_t tap = rows.first * g->kernel_width + columns.first;
            const int32_t met_rows = rows.last - rows.first;
            const int32_t width = (columns.last - columns.first) * channels;
            const int some = met_rows > 0 && width > 0;
            depthwise_pixel(some ? input + pixel * channels : input,
                            some ? weights + tap * channels : weights, output, &layer, met_rows,
                            width);
            output += channels;
        }
    }
}
