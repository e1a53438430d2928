/* needs: rolled */
/*
 * `count` kept blocks of `cells` weights each (4 or 16) from block `first` on, in 8 bits: from
 * `bits` (2 or 4) a weight. One bit is a sign: after those of a block of 16, or of two blocks of 4,
 * come their magnitudes.
 */
static void block_values(const uint8_t *stored, int32_t bits, int32_t cells, int32_t first,
                         int32_t count, int8_t *to)
{
    if (bits != 1) {
        const uint32_t sign = 1U << (bits - 1), mask = 2U * sign - 1U;
        const uint8_t *next = stored + ((first * cells * bits) >> 3);
        const uint8_t *const end = next + ((count * cells * bits) >> 3);
        ROLLED
        while (next < end) {
            uint32_t byte = 256U | *next++; /* a sentinel above the weights that are left */
            ROLLED
            do {
                *to++ = (int8_t)((int32_t)((byte & mask) ^ sign) - (int32_t)sign);
                byte >>= bits;
            } while (byte != 1U);
        }
        return;
    }
    ROLLED
    for (int32_t block = first; block < first + count; block++) {
        const uint8_t *group = stored + (cells == 16 ? block : block >> 1) * 3;
        uint32_t signs = group[0];
        int32_t magnitude;
        if (cells == 16) {
            signs |= (uint32_t)group[1] << 8;
            magnitude = group[2];
        } else {
            signs >>= 4 * (block & 1);
            magnitude = group[1 + (block & 1)];
        }
        ROLLED
        for (int32_t i = 0; i < cells; i++, signs >>= 1) {
            *to++ = (int8_t)((signs & 1U) != 0 ? -magnitude : magnitude);
        }
    }
}
