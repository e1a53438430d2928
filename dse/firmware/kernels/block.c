/* needs: window clamp $requantize dsp even_$value group_$layout weight_$layout */
/* Two pixels (a, b), and what they and two rows of weights (0, 1) have summed up. */
typedef struct {
    const uint8_t *from_a, *from_b;
    int32_t a0, a1, b0, b1;
} ${value}_block_$layout;

/* Four weights of each row by four values of each pixel, loaded side by side. */
ALWAYS_INLINE void ${value}_step_$layout(${value}_block_$layout *s, uint32_t four0, uint32_t four1)
{
    uint32_t held_a, held_b;
    load_$value(&s->from_a, &s->from_b, &held_a, &held_b);
    uint32_t pair = even_bytes(four0);
    uint32_t values = even_$value(held_a);
    s->a0 = multiply_both(pair, values, s->a0);
    values = even_$value(held_b);
    s->b0 = multiply_both(pair, values, s->b0);
    pair = even_bytes(four1);
    s->b1 = multiply_both(pair, values, s->b1);
    s->a1 = multiply_both(pair, even_$value(held_a), s->a1);
    odd_$value(&s->from_a, &s->from_b, &held_a, &held_b);
    pair = odd_bytes(four0);
    s->a0 = multiply_both(pair, held_a, s->a0);
    s->b0 = multiply_both(pair, held_b, s->b0);
    pair = odd_bytes(four1);
    s->a1 = multiply_both(pair, held_a, s->a1);
    s->b1 = multiply_both(pair, held_b, s->b1);
}

ALWAYS_INLINE void ${value}_word_$layout(${value}_block_$layout *s, const uint8_t **row0,
                                         const uint8_t **row1)
{
    const uint32_t word0 = next_word(row0), word1 = next_word(row1);
    ${value}_step_$layout(s, four_$layout(word0, 0), four_$layout(word1, 0));
    if (group_$layout > 4) {
        ${value}_step_$layout(s, four_$layout(word0, 1), four_$layout(word1, 1));
    }
    if (group_$layout > 8) {
        ${value}_step_$layout(s, four_$layout(word0, 2), four_$layout(word1, 2));
        ${value}_step_$layout(s, four_$layout(word0, 3), four_$layout(word1, 3));
    }
}

/* The whole words of two rows: a function of its own, so that all registers are its. */
static NO_INLINE void ${value}_words_$layout(const uint8_t *row0, const uint8_t *row1,
                                             ${value}_block_$layout *block, int32_t words)
{
    ${value}_block_$layout s = {block->from_a, block->from_b, 0, 0, 0, 0};
    const end_$value end = row0 + 4 * words;
    const int twice = group_$layout == 4; /* short words: two in a round */
    if (twice && (words & 1) != 0) {
        ${value}_word_$layout(&s, &row0, &row1);
    }
    while (row0 != end) {
        ${value}_word_$layout(&s, &row0, &row1);
        if (twice) {
            ${value}_word_$layout(&s, &row0, &row1);
        }
    }
    block->a0 = s.a0 >> scale_bits_$layout;
    block->a1 = s.a1 >> scale_bits_$layout;
    block->b0 = s.b0 >> scale_bits_$layout;
    block->b1 = s.b1 >> scale_bits_$layout;
}

/*
 * All output channels of two pixels, two channels at a time: 2 x 2 sums share what is loaded.
 * Weights of less than 8 bits are multiplied as they lie in their bytes, 2^scale_bits times.
 */
static void ${value}_pixels_$layout(const $value *a, const $value *b, $element *output_a,
                                    $element *output_b, int32_t depth, const window *g,
                                    const uint8_t *weights, const int32_t *bias,
                                    const int32_t *multiplier, const int8_t *right)
{
    const int32_t channels = g->output_channels;
    const int32_t zero = g->output_zero, low = g->low, high = g->high;
    const int32_t bytes = (depth * $bits + 7) >> 3;
    const int32_t words = depth / group_$layout, rest = depth - words * group_$layout;
    ${value}_block_$layout s = {(const uint8_t *)a, (const uint8_t *)b, 0, 0, 0, 0};
    for (int32_t o = 0; o < channels; o += 2) {
        const int32_t next = o + 1 < channels ? o + 1 : o;
        const uint8_t *const row0 = weights + o * bytes, *const row1 = weights + next * bytes;
        ${value}_words_$layout(row0, row1, &s, words);
        int32_t a0 = s.a0, a1 = s.a1, b0 = s.b0, b1 = s.b1;
        for (int32_t i = depth - rest; i < depth; i++) {
            const int32_t weight0 = weight_$layout(row0, i), weight1 = weight_$layout(row1, i);
            const int32_t at = place_$value(i);
            a0 += weight0 * a[at];
            a1 += weight1 * a[at];
            b0 += weight0 * b[at];
            b1 += weight1 * b[at];
        }
        a0 = $requantize(a0 + bias[o], multiplier[o], right[o]) + zero;
        b0 = $requantize(b0 + bias[o], multiplier[o], right[o]) + zero;
        output_a[o] = clamp(a0, low, high);
        output_b[o] = clamp(b0, low, high);
        a1 = $requantize(a1 + bias[next], multiplier[next], right[next]) + zero;
        b1 = $requantize(b1 + bias[next], multiplier[next], right[next]) + zero;
        output_a[next] = clamp(a1, low, high);
        output_b[next] = clamp(b1, low, high);
    }
}
