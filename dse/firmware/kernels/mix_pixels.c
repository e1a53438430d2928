/* needs: even_mixed column_word */
/* Two pixels of int8 as int16 in `to`, mixed; what is left of a four keeps its order. */
static NO_INLINE void mix_pixels(const int8_t *a, const int8_t *b, mixed *to, int32_t depth)
{
    for (; depth >= 4; depth -= 4, a += 4, b += 4, to += 8) {
        const uint32_t word_a = load_word(a), word_b = load_word(b);
        store_word(to, even_bytes(word_a));
        store_word(to + 2, even_bytes(word_b));
        store_word(to + 4, odd_bytes(word_a));
        store_word(to + 6, odd_bytes(word_b));
    }
    for (int32_t i = 0; i < depth; i++) {
        to[place_mixed(i)] = a[i];
        to[place_mixed(i) + 2] = b[i];
    }
}
