/* needs: clamp_f32 */
static float hardswish_f32(float x)
{
    return x * clamp_f32(x / 6.0F + 0.5F, 0.0F, 1.0F);
}
