/* needs: mve $requantize */
#if defined(HELIUM)
/* Four of `$requantize`, one after the other: shifts or sums are too large for vectors. */
ALWAYS_INLINE int32x4_t requantize_four(int32x4_t x, int32x4_t multiplier, int32x4_t right)
{
    int32_t values[4], multipliers[4], rights[4];
    vstrwq_s32(values, x);
    vstrwq_s32(multipliers, multiplier);
    vstrwq_s32(rights, right);
    for (int32_t i = 0; i < 4; i++) {
        values[i] = $requantize(values[i], multipliers[i], rights[i]);
    }
    return vldrwq_s32(values);
}
#endif
