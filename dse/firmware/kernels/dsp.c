/*
 * Two int16 in one word. With the DSP extension (Cortex-M4, M7, M33) each function is one
 * instruction; without it the same is computed in plain C, so that any host can test it.
 * `volatile` keeps the order in which they are written, which fits the registers there are.
 */
#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline, unused))
#else
#define ALWAYS_INLINE static inline
#endif

#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__)
ALWAYS_INLINE uint32_t even_bytes(uint32_t word) /* bytes 0 and 2, sign-extended */
{
    uint32_t pair;
    __asm__ volatile("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
}

ALWAYS_INLINE uint32_t odd_bytes(uint32_t word) /* bytes 1 and 3 */
{
    uint32_t pair;
    __asm__ volatile("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
}

ALWAYS_INLINE uint32_t even_bytes_plus(uint32_t both, uint32_t word) /* both halves of `both` */
{
    uint32_t pair;
    __asm__ volatile("sxtab16 %0, %1, %2" : "=r"(pair) : "r"(both), "r"(word));
    return pair;
}

ALWAYS_INLINE uint32_t odd_bytes_plus(uint32_t both, uint32_t word)
{
    uint32_t pair;
    __asm__ volatile("sxtab16 %0, %1, %2, ror #8" : "=r"(pair) : "r"(both), "r"(word));
    return pair;
}

ALWAYS_INLINE int32_t multiply_both(uint32_t a, uint32_t b, int32_t sum) /* and add both products */
{
    __asm__ volatile("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}

ALWAYS_INLINE int32_t multiply_low(uint32_t a, uint32_t b, int32_t sum)
{
    __asm__ volatile("smlabb %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}

ALWAYS_INLINE int32_t multiply_high(uint32_t a, uint32_t b, int32_t sum)
{
    __asm__ volatile("smlatt %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}

ALWAYS_INLINE uint32_t load_word(const void *from) /* four bytes at any address */
{
    uint32_t word;
    __asm__ volatile("ldr %0, [%1]" : "=r"(word) : "r"(from) : "memory");
    return word;
}

ALWAYS_INLINE uint32_t next_word(const uint8_t **from) /* and move on */
{
    uint32_t word;
    __asm__ volatile("ldr %0, [%1], #4" : "=r"(word), "+r"(*from) : : "memory");
    return word;
}

ALWAYS_INLINE void next_words(const uint8_t **from, uint32_t *first, uint32_t *second)
{
    __asm__ volatile("ldr %1, [%2, #4]\n\tldr %0, [%2], #8"
                     : "=r"(*first), "=&r"(*second), "+r"(*from)
                     :
                     : "memory");
}

ALWAYS_INLINE uint32_t word_at(const void *from, int32_t offset)
{
    uint32_t word;
    __asm__ volatile("ldr %0, [%1, %2]" : "=r"(word) : "r"(from), "r"(offset) : "memory");
    return word;
}

ALWAYS_INLINE int32_t high_word(int32_t a, int32_t b) /* round(a * b / 2^32), halves upwards */
{
    int32_t result;
    __asm__("smmulr %0, %1, %2" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
#else
ALWAYS_INLINE uint32_t two(int32_t low, int32_t high)
{
    return ((uint32_t)low & 0xFFFFU) | ((uint32_t)high << 16);
}

ALWAYS_INLINE int32_t low_half(uint32_t pair)
{
    return (int16_t)(uint16_t)(pair & 0xFFFFU);
}

ALWAYS_INLINE int32_t high_half(uint32_t pair)
{
    return (int16_t)(uint16_t)(pair >> 16);
}

ALWAYS_INLINE int32_t signed_byte(uint32_t word)
{
    return (int8_t)(uint8_t)(word & 0xFFU);
}

ALWAYS_INLINE uint32_t even_bytes(uint32_t word) /* bytes 0 and 2, sign-extended */
{
    return two(signed_byte(word), signed_byte(word >> 16));
}

ALWAYS_INLINE uint32_t odd_bytes(uint32_t word) /* bytes 1 and 3 */
{
    return even_bytes(word >> 8);
}

ALWAYS_INLINE uint32_t even_bytes_plus(uint32_t both, uint32_t word) /* both halves of `both` */
{
    return two(low_half(both) + signed_byte(word), high_half(both) + signed_byte(word >> 16));
}

ALWAYS_INLINE uint32_t odd_bytes_plus(uint32_t both, uint32_t word)
{
    return even_bytes_plus(both, word >> 8);
}

ALWAYS_INLINE int32_t multiply_low(uint32_t a, uint32_t b, int32_t sum)
{
    return sum + low_half(a) * low_half(b);
}

ALWAYS_INLINE int32_t multiply_high(uint32_t a, uint32_t b, int32_t sum)
{
    return sum + high_half(a) * high_half(b);
}

ALWAYS_INLINE int32_t multiply_both(uint32_t a, uint32_t b, int32_t sum) /* and add both products */
{
    return multiply_high(a, b, multiply_low(a, b, sum));
}

ALWAYS_INLINE uint32_t load_word(const void *from) /* four bytes at any address */
{
    const uint8_t *byte = from;
    return byte[0] | (uint32_t)byte[1] << 8 | (uint32_t)byte[2] << 16 | (uint32_t)byte[3] << 24;
}

ALWAYS_INLINE uint32_t next_word(const uint8_t **from) /* and move on */
{
    *from += 4;
    return load_word(*from - 4);
}

ALWAYS_INLINE void next_words(const uint8_t **from, uint32_t *first, uint32_t *second)
{
    *first = next_word(from);
    *second = next_word(from);
}

ALWAYS_INLINE uint32_t word_at(const void *from, int32_t offset)
{
    return load_word((const uint8_t *)from + offset);
}

ALWAYS_INLINE int32_t high_word(int32_t a, int32_t b) /* round(a * b / 2^32), halves upwards */
{
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 31)) >> 32);
}
#endif
