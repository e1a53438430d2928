/* needs: mve */
#if defined(HELIUM)
/* Four of `requantize`, rounded once; |x| < 2^30, 0 <= right <= 30. */
ALWAYS_INLINE int32x4_t requantize_four(int32x4_t x, int32x4_t multiplier, int32x4_t right)
{
    const int32x4_t twice = vqdmulhq_s32(vshlq_n_s32(x, 1), multiplier);
    return vrshlq_s32(twice, vmvnq_s32(right)); /* -right - 1 */
}
#endif
