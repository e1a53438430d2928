/*
 * A row of weights that indices of `bits` bits mean, `step` bytes apart; `codes` goes on behind them.
 * Entries hold `vector` weights (1, 2 or 4), of which the last of a row may stick out.
 */
static void decode_row(const uint8_t **codes, const int8_t *entries, int32_t bits, int32_t vector,
                       int32_t count, int8_t *to, int32_t step)
{
    const uint8_t *next = *codes;
    const uint32_t mask = (1U << bits) - 1U;
    const int32_t whole = vector << (2 - (bits >> 2)); /* weights of a byte's indices */
    for (; vector == 1 && count >= whole; count -= whole) {
        uint32_t byte = 256U | *next++; /* a sentinel above the bits that are left */
        do {
            *to = entries[byte & mask];
            to += step;
            byte >>= bits;
        } while (byte != 1U);
    }
    for (; count >= whole; count -= whole) {
        uint32_t byte = 256U | *next++;
        do {
            const int8_t *entry = entries + (int32_t)(byte & mask) * vector;
            byte >>= bits;
            to[0] = entry[0];
            to[step] = entry[1];
            to += 2 * step;
            if (vector == 4) {
                to[0] = entry[2];
                to[step] = entry[3];
                to += 2 * step;
            }
        } while (byte != 1U);
    }
    if (count > 0) {
        uint32_t byte = *next++;
        for (; count > 0; byte >>= bits) {
            const int8_t *entry = entries + (int32_t)(byte & mask) * vector;
            for (int32_t i = 0; i < vector && count > 0; i++, count--) {
                *to = entry[i];
                to += step;
            }
        }
    }
    *codes = next;
}
