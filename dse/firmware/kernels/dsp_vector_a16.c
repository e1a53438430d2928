/* needs: window clamp $requantize dsp group_$layout weight_$layout */
ALWAYS_INLINE void vector_step_$layout(const uint8_t **from, uint32_t word0, uint32_t word1,
                                       int32_t index, int32_t *sum0, int32_t *sum1)
{
    const uint32_t four0 = four_$layout(word0, index), four1 = four_$layout(word1, index);
    const uint32_t first = next_word(from), second = next_word(from);
    *sum0 = multiply_both(even_bytes(four0), first, *sum0);
    *sum1 = multiply_both(even_bytes(four1), first, *sum1);
    *sum0 = multiply_both(odd_bytes(four0), second, *sum0);
    *sum1 = multiply_both(odd_bytes(four1), second, *sum1);
}

/* Fully connected, two outputs at a time. */
static void dsp_vector_$layout$suffix(const int16_t *input, int16_t *output, const window *g,
                                      const uint8_t *weights, const int32_t *bias,
                                      const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->input_channels, channels = g->output_channels;
    const int32_t bytes = (depth * $bits + 7) >> 3;
    const int32_t words = depth / group_$layout, rest = depth - words * group_$layout;
    for (int32_t o = 0; o < channels; o += 2) {
        const int32_t next = o + 1 < channels ? o + 1 : o;
        const uint8_t *row0 = weights + o * bytes, *row1 = weights + next * bytes;
        const uint8_t *const end = row0 + 4 * words;
        const uint8_t *values = (const uint8_t *)input;
        int32_t sum0 = 0, sum1 = 0;
        while (row0 != end) {
            const uint32_t word0 = next_word(&row0), word1 = next_word(&row1);
            vector_step_$layout(&values, word0, word1, 0, &sum0, &sum1);
            if (group_$layout > 4) {
                vector_step_$layout(&values, word0, word1, 1, &sum0, &sum1);
            }
            if (group_$layout > 8) {
                vector_step_$layout(&values, word0, word1, 2, &sum0, &sum1);
                vector_step_$layout(&values, word0, word1, 3, &sum0, &sum1);
            }
        }
        sum0 = (sum0 >> scale_bits_$layout) + bias[o];
        sum1 = (sum1 >> scale_bits_$layout) + bias[next];
        for (int32_t i = 0; i < rest; i++) {
            sum0 += weight_$layout(row0, i) * input[depth - rest + i];
            sum1 += weight_$layout(row1, i) * input[depth - rest + i];
        }
        sum0 = $requantize(sum0, multiplier[o], right[o]);
        sum1 = $requantize(sum1, multiplier[next], right[next]);
        output[o] = clamp(sum0, g->low, g->high);
        output[next] = clamp(sum1, g->low, g->high);
    }
}
