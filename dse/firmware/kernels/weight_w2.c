/* needs: field */
static inline int32_t weight_w2(const uint8_t *row, int32_t index)
{
    return field(row[index >> 2], index & 3, 2);
}
