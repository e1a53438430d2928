/* needs: clamp_f32 */
static void add_f32(const float *a, const float *b, float *output, int32_t elements, float low,
                    float high)
{
    for (int32_t i = 0; i < elements; i++) {
        output[i] = clamp_f32(a[i] + b[i], low, high);
    }
}
