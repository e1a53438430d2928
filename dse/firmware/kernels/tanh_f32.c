/* needs: exp_f32 */
static float tanh_f32(float x)
{
    return 1.0F - 2.0F / (1.0F + exp_f32(2.0F * x));
}
