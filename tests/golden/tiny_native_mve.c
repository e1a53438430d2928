/* network: backend native-mve, double rounding */
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

static inline int8_t clamp(int32_t value, int32_t low, int32_t high)
{
    value = value < low ? low : value;
    value = value > high ? high : value;
    return (int8_t)value;
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

/*
 * Helium, the vector extension of Cortex-M55 and M85: 16 bytes in a register. Without it the
 * same is computed in plain C, so that any host can test it.
 */
#if defined(__ARM_FEATURE_MVE) && defined(__GNUC__)
#include <arm_mve.h>
#define HELIUM
#endif

/*
 * x * multiplier * 2^(-31 - right), rounded twice as CMSIS-NN does, halves away from zero;
 * |x| < 2^30 and 1 <= right <= 31.
 */
ALWAYS_INLINE int32_t requantize(int32_t x, int32_t multiplier, int32_t right)
{
    const int32_t high = high_word(x * 2, multiplier);
    return (((high + (high >> 31)) >> (right - 1)) + 1) >> 1;
}

#if defined(HELIUM)
/* Four of `requantize`, rounded twice, halves away from zero; 0 <= right <= 31. */
ALWAYS_INLINE int32x4_t requantize_four(int32x4_t x, int32x4_t multiplier, int32x4_t right)
{
    const int32x4_t left = vnegq_s32(right);
    const int32x4_t high = vqrdmulhq_s32(x, multiplier);
    const int32x4_t less = vshrq_n_s32(vandq_s32(high, left), 31); /* -1 where both are negative */
    return vrshlq_s32(vaddq_s32(high, less), left);
}
#endif

/* What a layer needs to make outputs of sums, from one output channel on. */
typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *right;
    int32_t zero, low, high;
} mve_outputs;

/* At most four sums of `count` channels to outputs. */
ALWAYS_INLINE void finish_four(const int32_t *sums, int8_t *output, int32_t count, int32_t from,
                               const mve_outputs *of)
{
    const int32_t *const bias = of->bias + from, *const multiplier = of->multiplier + from;
    const int8_t *const right = of->right + from;
#if defined(HELIUM)
    if (count >= 4) {
        int32x4_t value = vaddq_s32(vldrwq_s32(sums), vldrwq_s32(bias));
        value = requantize_four(value, vldrwq_s32(multiplier), vldrbq_s32(right));
        value = vaddq_n_s32(value, of->zero);
        value = vmaxq_s32(value, vdupq_n_s32(of->low));
        value = vminq_s32(value, vdupq_n_s32(of->high));
        vstrbq_s32(output + from, value);
        return;
    }
#endif
    for (int32_t i = 0; i < 4 && i < count; i++) {
        const int32_t value = requantize(sums[i] + bias[i], multiplier[i], right[i]);
        output[from + i] = clamp(value + of->zero, of->low, of->high);
    }
}

/* Products of `from` with four rows of weights (the last one again where there are fewer). */
ALWAYS_INLINE void four_dots(const int8_t *from, const int8_t *weights, int32_t depth,
                             int32_t rows, int32_t *sums)
{
    const int8_t *row0 = weights, *row1 = row0 + (rows > 1 ? depth : 0);
    const int8_t *row2 = row1 + (rows > 2 ? depth : 0), *row3 = row2 + (rows > 3 ? depth : 0);
    int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#if defined(HELIUM)
    for (; depth >= 16; depth -= 16) {
        const int8x16_t values = vldrbq_s8(from);
        sum0 = vmladavaq_s8(sum0, values, vldrbq_s8(row0));
        sum1 = vmladavaq_s8(sum1, values, vldrbq_s8(row1));
        sum2 = vmladavaq_s8(sum2, values, vldrbq_s8(row2));
        sum3 = vmladavaq_s8(sum3, values, vldrbq_s8(row3));
        from += 16;
        row0 += 16;
        row1 += 16;
        row2 += 16;
        row3 += 16;
        /* Five pointers that move, not five sums of a base and an index. */
        __asm__("" : "+r"(from), "+r"(row0), "+r"(row1), "+r"(row2), "+r"(row3));
    }
    if (depth > 0) {
        const mve_pred16_t some = vctp8q((uint32_t)depth);
        const int8x16_t values = vldrbq_z_s8(from, some);
        sum0 = vmladavaq_s8(sum0, values, vldrbq_z_s8(row0, some));
        sum1 = vmladavaq_s8(sum1, values, vldrbq_z_s8(row1, some));
        sum2 = vmladavaq_s8(sum2, values, vldrbq_z_s8(row2, some));
        sum3 = vmladavaq_s8(sum3, values, vldrbq_z_s8(row3, some));
    }
#else
    for (int32_t i = 0; i < depth; i++) {
        sum0 += from[i] * row0[i];
        sum1 += from[i] * row1[i];
        sum2 += from[i] * row2[i];
        sum3 += from[i] * row3[i];
    }
#endif
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
}

/* All output channels of one pixel. */
KERNEL void mve_pixel(const int8_t *from, int8_t *output, int32_t depth,
                             int32_t channels, const uint8_t *weights,
                             const mve_outputs *outputs)
{
    const mve_outputs of = *outputs;
    const int8_t *rows = (const int8_t *)weights;
    for (int32_t o = 0; o < channels; o += 4) {
        int32_t sums[4];
        four_dots(from, rows, depth, channels - o, sums);
        finish_four(sums, output, channels - o, o, &of);
        rows += 4 * depth;
    }
}

static inline int inside(int32_t position, int32_t size)
{
    return (uint32_t)position < (uint32_t)size;
}

/* Keeps the compiler from turning a loop into a call of memcpy or memset. */
#if defined(__GNUC__)
#define KEEP_LOOP() __asm__ volatile("" ::: "memory")
#else
#define KEEP_LOOP()
#endif

ALWAYS_INLINE void copy_run(const int8_t *from, int8_t *to, int32_t count)
{
#if defined(HELIUM)
    for (; count > 0; count -= 16, from += 16, to += 16) {
        const mve_pred16_t some = vctp8q((uint32_t)count);
        vstrbq_p_s8(to, vldrbq_z_s8(from, some), some);
    }
#else
    for (int32_t i = 0; i < count; i++) {
        to[i] = from[i];
        KEEP_LOOP();
    }
#endif
}

/* The window of one output pixel, taps that lie side by side at once; padding is `zero`. */
KERNEL void mve_column(const int8_t *input, int8_t *column, const window *g,
                              int32_t top, int32_t left)
{
    const int32_t channels = g->input_channels;
    const int whole = g->dilation_x == 1 && left >= 0 && left + g->kernel_width <= g->input_width;
    const int32_t taps = whole ? g->kernel_width : 1, run = taps * channels;
    for (int32_t ky = 0; ky < g->kernel_height; ky++) {
        const int32_t row = top + ky * g->dilation_y;
        for (int32_t kx = 0; kx < g->kernel_width; kx += taps) {
            const int32_t at = left + kx * g->dilation_x;
            if (inside(row, g->input_height) && inside(at, g->input_width)) {
                copy_run(input + (row * g->input_width + at) * channels, column, run);
            } else {
                for (int32_t i = 0; i < run; i++) {
                    column[i] = (int8_t)g->input_zero;
                    KEEP_LOOP();
                }
            }
            column += run;
        }
    }
}

/*
 * Convolution over a column in `scratch`, the window of an output pixel; `bias` holds
 * bias - input_zero * sum(weights).
 */
KERNEL void mve_conv(const int8_t *input, int8_t *output, int8_t *scratch,
                            const window *g, const uint8_t *weights, const int32_t *bias,
                            const int32_t *multiplier, const int8_t *right)
{
    const int32_t depth = g->kernel_height * g->kernel_width * g->input_channels;
    const mve_outputs of = {bias, multiplier, right, g->output_zero, g->low, g->high};
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            mve_column(input, scratch, g, y * g->stride_y - g->top,
                              x * g->stride_x - g->left);
            mve_pixel(scratch, output, depth, g->output_channels, weights, &of);
            output += g->output_channels;
        }
    }
}

/* The taps of a window along one axis that meet the input: first <= tap < last. */
typedef struct {
    int32_t first, last;
} taps;

static inline taps met(int32_t start, int32_t dilation, int32_t kernel, int32_t size)
{
    taps found = {0, kernel};
    while (start + found.first * dilation < 0) {
        found.first++;
    }
    while (found.last > found.first && start + (found.last - 1) * dilation >= size) {
        found.last--;
    }
    return found;
}

/* What four channels have summed up. */
typedef struct {
    int32_t sum0, sum1, sum2, sum3;
} four_sums;

ALWAYS_INLINE void add_tap(four_sums *s, const int8_t *from, const uint8_t *weight, int32_t at,
                           uint32_t both)
{
    uint32_t values = word_at(from, at), factors = word_at(weight, at);
    const uint32_t even = even_bytes_plus(both, values), pair = even_bytes(factors);
    s->sum0 = multiply_low(even, pair, s->sum0);
    s->sum2 = multiply_high(even, pair, s->sum2);
    values = odd_bytes_plus(both, values);
    factors = odd_bytes(factors);
    s->sum1 = multiply_low(values, factors, s->sum1);
    s->sum3 = multiply_high(values, factors, s->sum3);
}

/* What all pixels share; input and weights move by `channels` from one tap to the next. */
typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *right;
    int32_t input_row, weights_row; /* elements from one row of taps to the next */
    int32_t channels, zero, low, high;
    uint32_t both; /* the negated zero point of the input, twice */
} depthwise_layer;

/* One pixel, `rows` of taps of `width` bytes: a function of its own, for its registers' sake. */
KERNEL void depthwise_pixel(const int8_t *input, const uint8_t *weights, int8_t *output,
                                      const depthwise_layer *layer, int32_t rows, int32_t width)
{
    const int32_t step = layer->channels;
    const uint32_t both = layer->both;
    const int three = width == 3 * step;
    const int32_t input_row = layer->input_row, weights_row = layer->weights_row;
    const int32_t zero = layer->zero, low = layer->low, high = layer->high;
    for (int32_t c = 0; c < step; c += 4) {
        c = c + 4 > step ? step - 4 : c;
        const int8_t *from = input + c;
        const uint8_t *weight = weights + c;
        const int32_t *bias = layer->bias + c, *multiplier = layer->multiplier + c;
        const int8_t *right = layer->right + c;
        four_sums s = {bias[0], bias[1], bias[2], bias[3]};
        for (int32_t row = three ? rows : 0; row > 0; row--) {
            add_tap(&s, from, weight, 0, both);
            add_tap(&s, from, weight, step, both);
            add_tap(&s, from + step, weight + step, step, both);
            from += input_row;
            weight += weights_row;
        }
        for (int32_t row = three ? 0 : rows; row > 0; row--) {
            for (int32_t at = 0; at < width; at += step) {
                add_tap(&s, from, weight, at, both);
            }
            from += input_row;
            weight += weights_row;
        }
        int8_t *to = output + c;
        *to++ = clamp(requantize(s.sum0, *multiplier++, *right++) + zero, low, high);
        *to++ = clamp(requantize(s.sum1, *multiplier++, *right++) + zero, low, high);
        *to++ = clamp(requantize(s.sum2, *multiplier++, *right++) + zero, low, high);
        *to = clamp(requantize(s.sum3, *multiplier, *right) + zero, low, high);
    }
}

/*
 * Depthwise convolution of four channels and more without dilation, weights of 8 bits (H, W, O):
 * four channels of a tap are one word of inputs and one of weights (the last four may overlap).
 */
KERNEL void dsp_depthwise(const int8_t *input, int8_t *output, const window *g,
                          const uint8_t *weights, const int32_t *bias, const int32_t *multiplier,
                          const int8_t *right)
{
    const int32_t channels = g->input_channels;
    const uint32_t less = (uint32_t)-g->input_zero & 0xFFFFU;
    const depthwise_layer layer = {bias, multiplier, right, g->input_width * channels,
                                   g->kernel_width * channels, channels, g->output_zero, g->low,
                                   g->high, less | less << 16};
    for (int32_t y = 0; y < g->output_height; y++) {
        const int32_t top = y * g->stride_y - g->top;
        const taps rows = met(top, 1, g->kernel_height, g->input_height);
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t left = x * g->stride_x - g->left;
            const taps columns = met(left, 1, g->kernel_width, g->input_width);
            const int32_t pixel = (top + rows.first) * g->input_width + left + columns.first;
            const int32_t tap = rows.first * g->kernel_width + columns.first;
            const int32_t met_rows = rows.last - rows.first;
            const int32_t width = (columns.last - columns.first) * channels;
            const int some = met_rows > 0 && width > 0;
            depthwise_pixel(some ? input + pixel * channels : input,
                            some ? weights + tap * channels : weights, output, &layer, met_rows,
                            width);
            output += channels;
        }
    }
}

/* Mean of each window, padding left out; halves are rounded away from zero. */
KERNEL void average_pool(const int8_t *input, int8_t *output, const window *g)
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
                    const int8_t *from = input + (row * g->input_width + left) * channels + c;
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

/* 1x1 convolution and fully connected; `bias` holds bias - input_zero * sum(weights). */
KERNEL void mve_pointwise(const int8_t *input, int8_t *output, const window *g,
                                 const uint8_t *weights, const int32_t *bias,
                                 const int32_t *multiplier, const int8_t *right)
{
    const mve_outputs of = {bias, multiplier, right, g->output_zero, g->low, g->high};
    for (int32_t left = g->output_height * g->output_width; left > 0; left--) {
        mve_pixel(input, output, g->input_channels, g->output_channels, weights, &of);
        input += g->input_channels;
        output += g->output_channels;
    }
}

static const int32_t op_0_first_bias[4] = {
    -3703, -4663, -3536, -4897
};

static const int32_t op_0_first_multiplier[4] = {
    1153565641, 1154278298, 1155946322, 1140318069
};

static const int32_t op_1_layers_b0_bias[4] = {
    -12724, -2349, 5247, 6691
};

static const int32_t op_1_layers_b0_multiplier[4] = {
    1372577249, 1097726637, 1176507161, 1349618297
};

static const int32_t op_4_hidden_bias[6] = {
    35596, -4650, -1027, -46596, -33442, -31308
};

static const int32_t op_4_hidden_multiplier[6] = {
    1975414101, 1305328831, 1137053228, 1160566620, 2122000842, 1672621770
};

static const int32_t op_5_fc_bias[5] = {
    2314, -48985, 111532, -8427, 95114
};

static const int32_t op_5_fc_multiplier[5] = {
    2098368883, 1085540869, 2019740251, 1904384560, 1739830933
};

static const uint8_t op_0_first_weights[288] = {
    66, 240, 111, 69, 112, 66, 127, 113, 200, 35, 40, 131, 235, 188, 102, 185, 231, 6, 209, 79,
    55, 37, 250, 235, 60, 47, 179, 36, 197, 219, 171, 254, 136, 206, 235, 121, 125, 242, 78, 19,
    76, 247, 201, 84, 202, 133, 40, 159, 230, 245, 215, 140, 96, 195, 174, 166, 65, 18, 6, 135,
    2, 69, 83, 69, 18, 255, 76, 195, 189, 225, 77, 226, 62, 160, 41, 217, 87, 79, 136, 91,
    7, 8, 160, 117, 26, 164, 229, 81, 42, 234, 26, 232, 41, 164, 73, 33, 28, 75, 31, 72,
    95, 179, 118, 169, 46, 182, 171, 55, 121, 16, 177, 149, 63, 143, 196, 174, 171, 127, 28, 198,
    138, 93, 43, 148, 16, 176, 110, 241, 64, 237, 23, 122, 95, 68, 84, 178, 166, 72, 202, 7,
    92, 185, 79, 47, 39, 252, 41, 54, 224, 187, 124, 252, 227, 136, 82, 23, 246, 46, 167, 22,
    49, 174, 190, 31, 146, 207, 31, 60, 41, 182, 28, 127, 231, 196, 162, 20, 78, 202, 210, 124,
    174, 7, 109, 39, 86, 90, 227, 87, 117, 92, 207, 142, 213, 214, 155, 4, 146, 166, 77, 93,
    124, 161, 198, 168, 157, 60, 4, 111, 241, 49, 217, 99, 252, 82, 246, 105, 95, 163, 203, 252,
    6, 113, 36, 5, 163, 226, 31, 191, 58, 183, 39, 230, 208, 94, 166, 3, 15, 126, 31, 43,
    114, 102, 85, 135, 191, 32, 107, 112, 158, 122, 81, 165, 74, 170, 202, 38, 117, 230, 154, 170,
    79, 71, 202, 214, 155, 156, 150, 106, 249, 160, 144, 193, 165, 127, 245, 114, 240, 119, 251, 144,
    63, 229, 54, 212, 117, 173, 195, 109
};

static const uint8_t op_1_layers_b0_weights[36] = {
    125, 216, 235, 83, 125, 34, 223, 211, 11, 219, 134, 239, 130, 238, 207, 213, 162, 203, 85, 173,
    3, 129, 129, 94, 129, 121, 211, 179, 132, 27, 79, 129, 223, 124, 75, 51
};

static const uint8_t op_4_hidden_weights[24] = {
    127, 154, 1, 212, 130, 129, 57, 24, 190, 165, 149, 127, 213, 197, 163, 129, 129, 174, 85, 30,
    194, 189, 113, 127
};

static const uint8_t op_5_fc_weights[30] = {
    83, 236, 56, 7, 129, 189, 37, 229, 129, 46, 5, 214, 57, 30, 204, 127, 71, 18, 227, 129,
    116, 217, 159, 96, 58, 41, 223, 205, 28, 127
};

static const int8_t op_0_first_right[4] = {
    8, 8, 8, 8
};

static const int8_t op_1_layers_b0_right[4] = {
    7, 6, 6, 7
};

static const int8_t op_4_hidden_right[6] = {
    7, 7, 6, 7, 7, 7
};

static const int8_t op_5_fc_right[5] = {
    9, 8, 9, 9, 9
};

/* conv2d: first */
static NO_INLINE void tiny_op_0_first(int8_t *arena)
{
    static const window shape = {4, 4, 8, 4, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 10, 13, -128, 127};
    mve_conv(arena + 0, arena + 200, arena + 128, &shape, op_0_first_weights, op_0_first_bias,
        op_0_first_multiplier, op_0_first_right);
}

/* conv2d: layers.b0 */
static NO_INLINE void tiny_op_1_layers_b0(int8_t *arena)
{
    static const window shape = {4, 4, 4, 4, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 13, -128, -128, 127};
    dsp_depthwise(arena + 200, arena + 0, &shape, op_1_layers_b0_weights, op_1_layers_b0_bias,
        op_1_layers_b0_multiplier, op_1_layers_b0_right);
}

/* pool2d: adaptive_avg_pool2d */
static NO_INLINE void tiny_op_2_adaptive_avg_pool2d(int8_t *arena)
{
    static const window shape = {4, 4, 4, 1, 1, 4, 4, 4, 4, 4, 0, 0, 1, 1, -128, -128, -128, 127};
    average_pool(arena + 0, arena + 64, &shape);
}

/* fully_connected: hidden */
static NO_INLINE void tiny_op_4_hidden(int8_t *arena)
{
    static const window shape = {1, 1, 4, 1, 1, 6, 1, 1, 1, 1, 0, 0, 1, 1, -128, -128, -128, 127};
    mve_pointwise(arena + 64, arena + 0, &shape, op_4_hidden_weights, op_4_hidden_bias,
        op_4_hidden_multiplier, op_4_hidden_right);
}

/* fully_connected: fc */
static NO_INLINE void tiny_op_5_fc(int8_t *arena)
{
    static const window shape = {1, 1, 6, 1, 1, 5, 1, 1, 1, 1, 0, 0, 1, 1, -128, -40, -128, 127};
    mve_pointwise(arena + 0, arena + 8, &shape, op_5_fc_weights, op_5_fc_bias, op_5_fc_multiplier,
        op_5_fc_right);
}

int8_t *tiny_input(void *arena)
{
    return (int8_t *)(void *)((int8_t *)arena + 0);
}

const int8_t *tiny_output(const void *arena)
{
    return (const int8_t *)(const void *)((const int8_t *)arena + 8);
}

void tiny_run(void *arena)
{
    int8_t *base = arena;
    tiny_op_0_first(base);
    tiny_op_1_layers_b0(base);
    tiny_op_2_adaptive_avg_pool2d(base);
    tiny_op_4_hidden(base);
    tiny_op_5_fc(base);
}
