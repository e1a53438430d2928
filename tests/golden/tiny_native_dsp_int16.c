/* network: backend native-dsp, double rounding */
#include "tiny.h"

#if defined(__GNUC__)
#define NO_INLINE __attribute__((noinline))
#else
#define NO_INLINE
#endif

/* One function for all its callers, not specialized to any: same bytes, same cycles. */
#if defined(__clang__)
#define KERNEL __attribute__((noinline, used)) static
#elif defined(__GNUC__) && __GNUC__ >= 8
#define KERNEL __attribute__((noipa)) static
#else
#define KERNEL static NO_INLINE
#endif

typedef int16_t dimension;

/* Geometry of a sliding window and what its int8 values need, one record an operator. */
typedef struct {
    dimension input_height, input_width, input_channels;
    dimension output_height, output_width, output_channels;
    dimension kernel_height, kernel_width;
    dimension stride_y, stride_x;
    dimension top, left; /* padding */
    dimension dilation_y, dilation_x;
    dimension input_zero, output_zero; /* zero points */
    dimension low, high;               /* fused activation */
} window;

static inline int inside(int32_t position, int32_t size)
{
    return (uint32_t)position < (uint32_t)size;
}

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

/* Keeps the compiler from turning a loop into a call of memcpy or memset. */
#if defined(__GNUC__)
#define KEEP_LOOP() __asm__ volatile("" ::: "memory")
#else
#define KEEP_LOOP()
#endif

/* The window of one output pixel; padding is zero. */
KERNEL void fill_column(const int16_t *input, int16_t *column, const window *g, int32_t top,
                        int32_t left)
{
    const int32_t channels = g->input_channels;
    for (int32_t ky = 0; ky < g->kernel_height; ky++) {
        const int32_t row = top + ky * g->dilation_y;
        for (int32_t kx = 0; kx < g->kernel_width; kx++) {
            const int32_t at = left + kx * g->dilation_x;
            const int covered = inside(row, g->input_height) && inside(at, g->input_width);
            const int16_t *from = input + (covered ? row * g->input_width + at : 0) * channels;
            if (!covered) {
                for (int32_t c = 0; c < channels; c++) {
                    column[c] = 0;
                    KEEP_LOOP();
                }
            } else {
                for (int32_t c = 0; c < channels; c++) {
                    column[c] = from[c];
                    KEEP_LOOP();
                }
            }
            column += channels;
        }
    }
}

static inline int16_t clamp(int32_t value, int32_t low, int32_t high)
{
    value = value < low ? low : value;
    value = value > high ? high : value;
    return (int16_t)value;
}

/*
 * x * multiplier * 2^(-31 - right), rounded once as for int64 sums in CMSIS-NN and TensorFlow Lite;
 * 2 <= right.
 */
static inline int32_t requantize_wide(int32_t x, int32_t multiplier, int32_t right)
{
    const int32_t high = (int32_t)(((int64_t)x * multiplier) >> 32);
    return (high + (1 << (right - 2))) >> (right - 1);
}

/* Columns hold each four values in the order first, third, second, fourth: two words. */
typedef const uint8_t *end_int16_t;

ALWAYS_INLINE void load_int16_t(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                                uint32_t *b)
{
    *a = next_word(from_a);
    *b = next_word(from_b);
}

ALWAYS_INLINE uint32_t even_int16_t(uint32_t held)
{
    return held;
}

ALWAYS_INLINE void odd_int16_t(const uint8_t **from_a, const uint8_t **from_b, uint32_t *a,
                               uint32_t *b)
{
    load_int16_t(from_a, from_b, a, b);
}

ALWAYS_INLINE int32_t place_int16_t(int32_t index)
{
    return index;
}

/* Weights of 4 bits come eight in a word: four in the low halves of the bytes, four in the high. */
enum { group_w4 = 8, scale_bits_w4 = 4 };

ALWAYS_INLINE uint32_t four_w4(uint32_t word, int32_t index) /* each times 16 */
{
    return (word << (4 - 4 * index)) & 0xF0F0F0F0U;
}

/* Field `index` of `bits` bits of a byte, sign-extended. */
static inline int32_t field(uint32_t byte, int32_t index, int32_t bits)
{
    return (int32_t)(byte << (32 - bits * (index + 1))) >> (32 - bits);
}

static inline int32_t weight_w4(const uint8_t *row, int32_t index)
{
    return field(row[index >> 1], index & 1, 4);
}

/* Two pixels (a, b), and what they and two rows of weights (0, 1) have summed up. */
typedef struct {
    const uint8_t *from_a, *from_b;
    int32_t a0, a1, b0, b1;
} int16_t_block_w4;

/* Four weights of each row by four values of each pixel, loaded side by side. */
ALWAYS_INLINE void int16_t_step_w4(int16_t_block_w4 *s, uint32_t four0, uint32_t four1)
{
    uint32_t held_a, held_b;
    load_int16_t(&s->from_a, &s->from_b, &held_a, &held_b);
    uint32_t pair = even_bytes(four0);
    uint32_t values = even_int16_t(held_a);
    s->a0 = multiply_both(pair, values, s->a0);
    values = even_int16_t(held_b);
    s->b0 = multiply_both(pair, values, s->b0);
    pair = even_bytes(four1);
    s->b1 = multiply_both(pair, values, s->b1);
    s->a1 = multiply_both(pair, even_int16_t(held_a), s->a1);
    odd_int16_t(&s->from_a, &s->from_b, &held_a, &held_b);
    pair = odd_bytes(four0);
    s->a0 = multiply_both(pair, held_a, s->a0);
    s->b0 = multiply_both(pair, held_b, s->b0);
    pair = odd_bytes(four1);
    s->a1 = multiply_both(pair, held_a, s->a1);
    s->b1 = multiply_both(pair, held_b, s->b1);
}

ALWAYS_INLINE void int16_t_word_w4(int16_t_block_w4 *s, const uint8_t **row0,
                                         const uint8_t **row1)
{
    const uint32_t word0 = next_word(row0), word1 = next_word(row1);
    int16_t_step_w4(s, four_w4(word0, 0), four_w4(word1, 0));
    if (group_w4 > 4) {
        int16_t_step_w4(s, four_w4(word0, 1), four_w4(word1, 1));
    }
    if (group_w4 > 8) {
        int16_t_step_w4(s, four_w4(word0, 2), four_w4(word1, 2));
        int16_t_step_w4(s, four_w4(word0, 3), four_w4(word1, 3));
    }
}

/* The whole words of two rows: a function of its own, so that all registers are its. */
KERNEL void int16_t_words_w4(const uint8_t *row0, const uint8_t *row1,
                                             int16_t_block_w4 *block, int32_t words)
{
    int16_t_block_w4 s = {block->from_a, block->from_b, 0, 0, 0, 0};
    const end_int16_t end = row0 + 4 * words;
    const int twice = group_w4 == 4; /* short words: two in a round */
    if (twice && (words & 1) != 0) {
        int16_t_word_w4(&s, &row0, &row1);
    }
    while (row0 != end) {
        int16_t_word_w4(&s, &row0, &row1);
        if (twice) {
            int16_t_word_w4(&s, &row0, &row1);
        }
    }
    block->a0 = s.a0 >> scale_bits_w4;
    block->a1 = s.a1 >> scale_bits_w4;
    block->b0 = s.b0 >> scale_bits_w4;
    block->b1 = s.b1 >> scale_bits_w4;
}

/*
 * All output channels of two pixels, two channels at a time: 2 x 2 sums share what is loaded.
 * Weights of less than 8 bits are multiplied as they lie in their bytes, 2^scale_bits times.
 */
KERNEL void int16_t_pixels_w4(const int16_t *a, const int16_t *b, int16_t *output_a,
                                    int16_t *output_b, int32_t depth, const window *g,
                                    const uint8_t *weights, const int32_t *bias,
                                    const int32_t *multiplier, const int8_t *right)
{
    const int32_t channels = g->output_channels;
    const int32_t zero = g->output_zero, low = g->low, high = g->high;
    const int32_t bytes = (depth * 4 + 7) >> 3;
    const int32_t words = depth / group_w4, rest = depth - words * group_w4;
    int16_t_block_w4 s = {(const uint8_t *)a, (const uint8_t *)b, 0, 0, 0, 0};
    for (int32_t o = 0; o < channels; o += 2) {
        const int32_t next = o + 1 < channels ? o + 1 : o;
        const uint8_t *const row0 = weights + o * bytes, *const row1 = weights + next * bytes;
        int16_t_words_w4(row0, row1, &s, words);
        int32_t a0 = s.a0, a1 = s.a1, b0 = s.b0, b1 = s.b1;
        for (int32_t i = depth - rest; i < depth; i++) {
            const int32_t weight0 = weight_w4(row0, i), weight1 = weight_w4(row1, i);
            const int32_t at = place_int16_t(i);
            a0 += weight0 * a[at];
            a1 += weight1 * a[at];
            b0 += weight0 * b[at];
            b1 += weight1 * b[at];
        }
        a0 = requantize_wide(a0 + bias[o], multiplier[o], right[o]) + zero;
        b0 = requantize_wide(b0 + bias[o], multiplier[o], right[o]) + zero;
        output_a[o] = clamp(a0, low, high);
        output_b[o] = clamp(b0, low, high);
        a1 = requantize_wide(a1 + bias[next], multiplier[next], right[next]) + zero;
        b1 = requantize_wide(b1 + bias[next], multiplier[next], right[next]) + zero;
        output_a[next] = clamp(a1, low, high);
        output_b[next] = clamp(b1, low, high);
    }
}

/* Convolution over two columns in `scratch`, one an output pixel. */
KERNEL void dsp_conv_w4_a16(const int16_t *input, int16_t *output, int16_t *scratch,
                             const window *g, const uint8_t *weights, const int32_t *bias,
                             const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->kernel_height * g->kernel_width * g->input_channels;
    const int32_t channels = g->output_channels;
    int16_t *const second = scratch + (depth + 3) / 4 * 4;
    int32_t filled = 0;
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            fill_column(input, filled == 0 ? scratch : second, g, y * g->stride_y - g->top,
                        x * g->stride_x - g->left);
            if (++filled == 2) {
                int16_t_pixels_w4(scratch, second, output, output + channels, depth, g,
                                        weights, bias, multiplier, right);
                output += 2 * channels;
                filled = 0;
            }
        }
    }
    if (filled != 0) {
        int16_t_pixels_w4(scratch, scratch, output, output, depth, g, weights, bias,
                                multiplier, right);
    }
}

/* What a sum or a product of two int8 tensors needs. */
typedef struct {
    int32_t elements, zero_a, zero_b, output_zero, low, high;
    int32_t multiplier, right;               /* of the result */
    int32_t multiplier_b, right_b;           /* of the second input (sums) */
} elementwise;

/* x / 2^exponent to nearest, halves away from zero (gemmlowp RoundingDivideByPOT); 0 to 31. */
static inline int32_t divide_by_power_of_two(int32_t x, int32_t exponent)
{
    const int32_t mask = (int32_t)(((uint32_t)1 << exponent) - 1U);
    const int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> exponent) + ((x & mask) > threshold);
}

/* x * multiplier * 2^(-31 - right), rounded twice as CMSIS-NN does; `right` < 0 shifts left. */
static inline int32_t requantize(int32_t x, int32_t multiplier, int32_t right)
{
    const int64_t wide = right < 0 ? (int64_t)x * ((int64_t)1 << -right) : (int64_t)x;
    const int64_t high = (wide * multiplier + ((int64_t)1 << 30)) >> 31;
    const int64_t bounded = high < INT32_MIN ? INT32_MIN : high > INT32_MAX ? INT32_MAX : high;
    return divide_by_power_of_two((int32_t)bounded, right < 0 ? 0 : right);
}

/*
 * TensorFlow Lite's ADD with 15 more bits: `a` has the larger scale, which its common scale
 * halves exactly; `b` is requantized to it.
 */
KERNEL void add_a16(const int16_t *a, const int16_t *b, int16_t *output, const elementwise *p)
{
    for (int32_t i = 0; i < p->elements; i++) {
        const int32_t wide = (b[i] - p->zero_b) * (1 << 15);
        int32_t sum = (a[i] - p->zero_a) * (1 << 14);
        sum += requantize(wide, p->multiplier_b, p->right_b);
        sum = requantize(sum, p->multiplier, p->right) + p->output_zero;
        output[i] = clamp(sum, p->low, p->high);
    }
}

/* Mean of each window, padding left out; halves are rounded away from zero. */
KERNEL void average_pool_a16(const int16_t *input, int16_t *output, const window *g)
{
    const int32_t channels = g->input_channels;
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            int32_t top = y * g->stride_y - g->top, left = x * g->stride_x - g->left;
            int32_t bottom = top + g->kernel_height, end = left + g->kernel_width;
            top = top < 0 ? 0 : top;
            left = left < 0 ? 0 : left;
            bottom = bottom > g->input_height ? g->input_height : bottom;
            end = end > g->input_width ? g->input_width : end;
            const int32_t count = (bottom - top) * (end - left);
            for (int32_t c = 0; c < channels; c++) {
                int32_t sum = 0;
                for (int32_t row = top; row < bottom; row++) {
                    const int16_t *from = input + (row * g->input_width + left) * channels + c;
                    for (int32_t column = left; column < end; column++) {
                        sum += *from;
                        from += channels;
                    }
                }
                sum += sum > 0 ? count / 2 : -(count / 2);
                *output++ = clamp(sum / count, g->low, g->high);
            }
        }
    }
}

ALWAYS_INLINE void vector_step_w4(const uint8_t **from, uint32_t word0, uint32_t word1,
                                       int32_t index, int32_t *sum0, int32_t *sum1)
{
    const uint32_t four0 = four_w4(word0, index), four1 = four_w4(word1, index);
    const uint32_t first = next_word(from), second = next_word(from);
    *sum0 = multiply_both(even_bytes(four0), first, *sum0);
    *sum1 = multiply_both(even_bytes(four1), first, *sum1);
    *sum0 = multiply_both(odd_bytes(four0), second, *sum0);
    *sum1 = multiply_both(odd_bytes(four1), second, *sum1);
}

/* Fully connected, two outputs at a time. */
KERNEL void dsp_vector_w4_a16(const int16_t *input, int16_t *output, const window *g,
                                      const uint8_t *weights, const int32_t *bias,
                                      const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->input_channels, channels = g->output_channels;
    const int32_t bytes = (depth * 4 + 7) >> 3;
    const int32_t words = depth / group_w4, rest = depth - words * group_w4;
    for (int32_t o = 0; o < channels; o += 2) {
        const int32_t next = o + 1 < channels ? o + 1 : o;
        const uint8_t *row0 = weights + o * bytes, *row1 = weights + next * bytes;
        const uint8_t *const end = row0 + 4 * words;
        const uint8_t *values = (const uint8_t *)input;
        int32_t sum0 = 0, sum1 = 0;
        while (row0 != end) {
            const uint32_t word0 = next_word(&row0), word1 = next_word(&row1);
            vector_step_w4(&values, word0, word1, 0, &sum0, &sum1);
            if (group_w4 > 4) {
                vector_step_w4(&values, word0, word1, 1, &sum0, &sum1);
            }
            if (group_w4 > 8) {
                vector_step_w4(&values, word0, word1, 2, &sum0, &sum1);
                vector_step_w4(&values, word0, word1, 3, &sum0, &sum1);
            }
        }
        sum0 = (sum0 >> scale_bits_w4) + bias[o];
        sum1 = (sum1 >> scale_bits_w4) + bias[next];
        for (int32_t i = 0; i < rest; i++) {
            sum0 += weight_w4(row0, i) * input[depth - rest + i];
            sum1 += weight_w4(row1, i) * input[depth - rest + i];
        }
        sum0 = requantize_wide(sum0, multiplier[o], right[o]);
        sum1 = requantize_wide(sum1, multiplier[next], right[next]);
        output[o] = clamp(sum0, g->low, g->high);
        output[next] = clamp(sum1, g->low, g->high);
    }
}

static const int32_t op_0_first_bias[4] = {
    70087, -30456, 35496, -34468
};

static const int32_t op_0_first_multiplier[4] = {
    1536557056, 1341521920, 1478688768, 1653538816
};

static const int32_t op_1_layers_b0_bias[4] = {
    -104010, 148462, -147213, -121115
};

static const int32_t op_1_layers_b0_multiplier[4] = {
    1593966592, 1591017472, 1509556224, 1654325248
};

static const int32_t op_5_hidden_bias[6] = {
    -220478, 135681, 116157, 126180, 159936, -213754
};

static const int32_t op_5_hidden_multiplier[6] = {
    1888747520, 1242890240, 1737359360, 1516371968, 2139684864, 1562902528
};

static const int32_t op_6_fc_bias[5] = {
    -276815, 351961, 355523, -158651, 18001
};

static const int32_t op_6_fc_multiplier[5] = {
    1153761280, 1122631680, 1189609472, 2054422528, 1195376640
};

static const uint8_t op_0_first_weights[20] = {
    148, 238, 92, 68, 1, 158, 225, 245, 55, 0, 247, 221, 195, 11, 5, 116, 149, 89, 146, 12
};

static const uint8_t op_1_layers_b0_weights[72] = {
    215, 37, 159, 161, 6, 91, 76, 75, 76, 117, 126, 78, 44, 252, 6, 32, 190, 32, 67, 203,
    156, 179, 73, 19, 245, 122, 171, 237, 36, 80, 240, 247, 42, 34, 36, 100, 183, 43, 113, 201,
    97, 87, 75, 191, 86, 101, 156, 35, 170, 37, 94, 62, 123, 59, 84, 237, 93, 87, 126, 218,
    190, 176, 15, 62, 35, 230, 185, 33, 197, 175, 44, 247
};

static const uint8_t op_5_hidden_weights[12] = {
    144, 181, 27, 151, 83, 183, 162, 215, 7, 15, 115, 83
};

static const uint8_t op_6_fc_weights[15] = {
    125, 122, 186, 164, 110, 118, 174, 231, 45, 106, 149, 249, 3, 12, 185
};

static const int8_t op_0_first_right[4] = {
    3, 4, 3, 3
};

static const int8_t op_1_layers_b0_right[4] = {
    4, 4, 4, 4
};

static const int8_t op_5_hidden_right[6] = {
    3, 2, 2, 2, 3, 3
};

static const int8_t op_6_fc_right[5] = {
    3, 3, 3, 4, 3
};

/* conv2d: first */
static NO_INLINE void tiny_op_0_first(int8_t *arena)
{
    static const window shape = {4, 4, 1, 4, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, -32768, 32767};
    dsp_conv_w4_a16((int16_t *)(void *)(arena + 48), (int16_t *)(void *)(arena + 144), (int16_t
        *)(void *)(arena + 0), &shape, op_0_first_weights, op_0_first_bias, op_0_first_multiplier,
        op_0_first_right);
}

/* conv2d: layers.b0 */
static NO_INLINE void tiny_op_1_layers_b0(int8_t *arena)
{
    static const window shape = {4, 4, 4, 4, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, -32768, 32767};
    dsp_conv_w4_a16((int16_t *)(void *)(arena + 144), (int16_t *)(void *)(arena + 272), (int16_t
        *)(void *)(arena + 0), &shape, op_1_layers_b0_weights, op_1_layers_b0_bias,
        op_1_layers_b0_multiplier, op_1_layers_b0_right);
}

/* add: add */
static NO_INLINE void tiny_op_2_add(int8_t *arena)
{
    static const elementwise shape = {64, 0, 0, 0, 0, 32767, 1866846546, 14, 2049232676, 2};
    add_a16((int16_t *)(void *)(arena + 144), (int16_t *)(void *)(arena + 272), (int16_t *)(void
        *)(arena + 0), &shape);
}

/* pool2d: adaptive_avg_pool2d */
static NO_INLINE void tiny_op_3_adaptive_avg_pool2d(int8_t *arena)
{
    static const window shape = {4, 4, 4, 1, 1, 4, 4, 4, 4, 4, 0, 0, 1, 1, 0, 0, -32768, 32767};
    average_pool_a16((int16_t *)(void *)(arena + 0), (int16_t *)(void *)(arena + 128), &shape);
}

/* fully_connected: hidden */
static NO_INLINE void tiny_op_5_hidden(int8_t *arena)
{
    static const window shape = {1, 1, 4, 1, 1, 6, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 32767};
    dsp_vector_w4_a16((int16_t *)(void *)(arena + 128), (int16_t *)(void *)(arena + 0), &shape,
        op_5_hidden_weights, op_5_hidden_bias, op_5_hidden_multiplier, op_5_hidden_right);
}

/* fully_connected: fc */
static NO_INLINE void tiny_op_6_fc(int8_t *arena)
{
    static const window shape = {1, 1, 6, 1, 1, 5, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, -32768, 32767};
    dsp_vector_w4_a16((int16_t *)(void *)(arena + 0), (int16_t *)(void *)(arena + 12), &shape,
        op_6_fc_weights, op_6_fc_bias, op_6_fc_multiplier, op_6_fc_right);
}

int16_t *tiny_input(void *arena)
{
    return (int16_t *)(void *)((int8_t *)arena + 48);
}

const int16_t *tiny_output(const void *arena)
{
    return (const int16_t *)(const void *)((const int8_t *)arena + 12);
}

void tiny_run(void *arena)
{
    int8_t *base = arena;
    tiny_op_0_first(base);
    tiny_op_1_layers_b0(base);
    tiny_op_2_add(base);
    tiny_op_3_adaptive_avg_pool2d(base);
    tiny_op_5_hidden(base);
    tiny_op_6_fc(base);
}
