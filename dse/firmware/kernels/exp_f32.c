/* exp(x) to about two units in the last place: 2^n times a Taylor series on |r| <= ln(2) / 2. */
static float exp_f32(float x)
{
    union {
        float value;
        uint32_t bits;
    } power;
    x = x > 88.0F ? 88.0F : x < -87.0F ? -87.0F : x;
    const float scaled = x * 1.44269504F;
    const int32_t n = (int32_t)(scaled + (scaled < 0.0F ? -0.5F : 0.5F));
    const float r = (x - (float)n * 0.693359375F) + (float)n * 2.12194440e-4F;
    float sum = 1.0F / 5040.0F;
    sum = sum * r + 1.0F / 720.0F;
    sum = sum * r + 1.0F / 120.0F;
    sum = sum * r + 1.0F / 24.0F;
    sum = sum * r + 1.0F / 6.0F;
    sum = sum * r + 0.5F;
    sum = sum * r + 1.0F;
    sum = sum * r + 1.0F;
    power.bits = (uint32_t)(n + 127) << 23;
    return sum * power.value;
}
