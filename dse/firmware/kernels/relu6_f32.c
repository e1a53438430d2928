/* needs: clamp_f32 */
static float relu6_f32(float x)
{
    return clamp_f32(x, 0.0F, 6.0F);
}
