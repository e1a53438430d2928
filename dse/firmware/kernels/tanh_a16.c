/* needs: curve */
/* Hyperbolic tangent in Q15, 2 sigmoid(2 x) - 1, from the same table. */
static void tanh_a16(const int16_t *input, int16_t *output, int32_t elements, int32_t multiplier,
                     int32_t right, const uint16_t *table)
{
    const int32_t half = (int32_t)(((uint32_t)1 << right) >> 1);
    for (int32_t i = 0; i < elements; i++) {
        const int32_t x = (input[i] * multiplier + half) >> right;
        const int32_t value = curve(x, 8, 0xFFFF * 256, table);
        output[i] = (int16_t)((x < 0 ? 0x80007F - value : value - 0x7FFF80) >> 8);
    }
}
