/* needs: dsp */
#if defined(__GNUC__)
typedef uint32_t __attribute__((may_alias)) column_word;
#else
typedef uint32_t column_word;
#endif

/* Two int16 at an address that is a multiple of four. */
ALWAYS_INLINE void store_word(int16_t *to, uint32_t word)
{
    *(column_word *)(void *)to = word;
}
