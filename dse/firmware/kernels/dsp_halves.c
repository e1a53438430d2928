/* needs: dsp */
#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
ALWAYS_INLINE int32_t multiply_high_low(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__ volatile("smlatb %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

ALWAYS_INLINE int32_t multiply_low_high(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__ volatile("smlabt %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}
#else
ALWAYS_INLINE int32_t multiply_high_low(uint32_t a, uint32_t b, int32_t sum)
{
    return sum + high_half(a) * low_half(b);
}

ALWAYS_INLINE int32_t multiply_low_high(uint32_t a, uint32_t b, int32_t sum)
{
    return sum + low_half(a) * high_half(b);
}
#endif
