/* needs: curve */
/* Sigmoid in Q15; `multiplier` and `right` bring the input to steps of 1 / 12288. */
static void sigmoid_a16(const int16_t *input, int16_t *output, int32_t elements,
                        int32_t multiplier, int32_t right, const uint16_t *table)
{
    const int32_t half = (int32_t)(((uint32_t)1 << right) >> 1);
    for (int32_t i = 0; i < elements; i++) {
        const int32_t x = (input[i] * multiplier + half) >> right;
        const int32_t value = curve(x, 9, 0x7FFF * 1024, table);
        output[i] = (int16_t)((x < 0 ? 0x20001FF - value : value + 0x200) >> 10);
    }
}
