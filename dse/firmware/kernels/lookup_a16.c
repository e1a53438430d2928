/* needs: interpolated */
/* An element-wise function by a table of 513 entries. */
static void lookup_a16(const int16_t *input, int16_t *output, int32_t elements,
                       const int16_t *table)
{
    for (int32_t i = 0; i < elements; i++) {
        output[i] = (int16_t)interpolated(input[i], table);
    }
}
