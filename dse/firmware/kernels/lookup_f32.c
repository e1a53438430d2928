/* needs: ${function}_f32 */
static void lookup_${function}_f32(const float *input, float *output, int32_t elements)
{
    for (int32_t i = 0; i < elements; i++) {
        output[i] = ${function}_f32(input[i]);
    }
}
