/* needs: exp_f32 */
static void softmax_f32(const float *input, float *output, int32_t rows, int32_t depth)
{
    for (; rows > 0; rows--, input += depth, output += depth) {
        float largest = input[0], sum = 0.0F;
        for (int32_t i = 1; i < depth; i++) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < depth; i++) {
            output[i] = exp_f32(input[i] - largest);
            sum += output[i];
        }
        for (int32_t i = 0; i < depth; i++) {
            output[i] /= sum;
        }
    }
}
