/* needs: clamp requantize */
/* From one scale to another, between two limits. */
static void rescale_a16(const int16_t *input, int16_t *output, int32_t elements,
                        int32_t multiplier, int32_t right, int32_t low, int32_t high)
{
    for (int32_t i = 0; i < elements; i++) {
        output[i] = clamp(requantize(input[i], multiplier, right), low, high);
    }
}
