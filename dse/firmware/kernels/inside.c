static inline int inside(int32_t position, int32_t size)
{
    return (uint32_t)position < (uint32_t)size;
}
