static inline int32_t weight_w8(const uint8_t *row, int32_t index)
{
    return (int8_t)row[index];
}
