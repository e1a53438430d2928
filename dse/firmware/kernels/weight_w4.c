/* needs: field */
static inline int32_t weight_w4(const uint8_t *row, int32_t index)
{
    return field(row[index >> 1], index & 1, 4);
}
