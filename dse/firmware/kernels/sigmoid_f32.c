/* needs: exp_f32 */
static float sigmoid_f32(float x)
{
    return 1.0F / (1.0F + exp_f32(-x));
}
