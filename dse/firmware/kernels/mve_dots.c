/* needs: mve_finish */
/* Products of `from` with four rows of weights (the last one again where there are fewer). */
ALWAYS_INLINE void four_dots(const $element *from, const int8_t *weights, int32_t depth,
                             int32_t rows, int32_t *sums)
{
    const int8_t *row0 = weights, *row1 = row0 + (rows > 1 ? depth : 0);
    const int8_t *row2 = row1 + (rows > 2 ? depth : 0), *row3 = row2 + (rows > 3 ? depth : 0);
    int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#if defined(HELIUM)
    for (; depth >= $lanes; depth -= $lanes) {
        const $vector values = vldr${unit}q_s$width(from);
        sum0 = vmladavaq_s$width(sum0, values, vldrbq_s$width(row0));
        sum1 = vmladavaq_s$width(sum1, values, vldrbq_s$width(row1));
        sum2 = vmladavaq_s$width(sum2, values, vldrbq_s$width(row2));
        sum3 = vmladavaq_s$width(sum3, values, vldrbq_s$width(row3));
        from += $lanes;
        row0 += $lanes;
        row1 += $lanes;
        row2 += $lanes;
        row3 += $lanes;
        /* Five pointers that move, not five sums of a base and an index. */
        __asm__("" : "+r"(from), "+r"(row0), "+r"(row1), "+r"(row2), "+r"(row3));
    }
    if (depth > 0) {
        const mve_pred16_t some = vctp${width}q((uint32_t)depth);
        const $vector values = vldr${unit}q_z_s$width(from, some);
        sum0 = vmladavaq_s$width(sum0, values, vldrbq_z_s$width(row0, some));
        sum1 = vmladavaq_s$width(sum1, values, vldrbq_z_s$width(row1, some));
        sum2 = vmladavaq_s$width(sum2, values, vldrbq_z_s$width(row2, some));
        sum3 = vmladavaq_s$width(sum3, values, vldrbq_z_s$width(row3, some));
    }
#else
    for (int32_t i = 0; i < depth; i++) {
        sum0 += from[i] * row0[i];
        sum1 += from[i] * row1[i];
        sum2 += from[i] * row2[i];
        sum3 += from[i] * row3[i];
    }
#endif
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
}

/* All output channels of one pixel. */
static void mve_pixel$suffix(const $element *from, $element *output, int32_t depth,
                             int32_t channels, const uint8_t *weights,
                             const mve_outputs *outputs)
{
    const mve_outputs of = *outputs;
    const int8_t *rows = (const int8_t *)weights;
    for (int32_t o = 0; o < channels; o += 4) {
        int32_t sums[4];
        four_dots(from, rows, depth, channels - o, sums);
        finish_four(sums, output, channels - o, o, &of);
        rows += 4 * depth;
    }
}
