/* Field `index` of `bits` bits of a byte, sign-extended. */
static inline int32_t field(uint32_t byte, int32_t index, int32_t bits)
{
    return (int32_t)(byte << (32 - bits * (index + 1))) >> (32 - bits);
}
