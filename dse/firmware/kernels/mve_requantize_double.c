/* needs: mve */
#if defined(HELIUM)
/* Four of `requantize`, rounded twice, halves away from zero; 0 <= right <= 31. */
ALWAYS_INLINE int32x4_t requantize_four(int32x4_t x, int32x4_t multiplier, int32x4_t right)
{
    const int32x4_t left = vnegq_s32(right);
    const int32x4_t high = vqrdmulhq_s32(x, multiplier);
    const int32x4_t less = vshrq_n_s32(vandq_s32(high, left), 31); /* -1 where both are negative */
    return vrshlq_s32(vaddq_s32(high, less), left);
}
#endif
