/* needs: mve */
#if defined(HELIUM)
/* Four of `requantize_wide`; 2 <= right. */
ALWAYS_INLINE int32x4_t requantize_four(int32x4_t x, int32x4_t multiplier, int32x4_t right)
{
    const int32x4_t left = vaddq_n_s32(vnegq_s32(right), 1);
    return vrshlq_s32(vmulhq_s32(x, multiplier), left);
}
#endif
