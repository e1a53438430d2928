static float relu_f32(float x)
{
    return x > 0.0F ? x : 0.0F;
}
