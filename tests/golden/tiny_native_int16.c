/* network: backend native, double rounding */
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

/* Two rows of weights as they are read, side by side, and what they have summed up. */
typedef struct {
    const uint8_t *row0, *row1;
    int32_t phase; /* weights already taken from the current bytes */
    int32_t sum0, sum1;
} pair;

/* Field `index` of `bits` bits of a byte, sign-extended. */
static inline int32_t field(uint32_t byte, int32_t index, int32_t bits)
{
    return (int32_t)(byte << (32 - bits * (index + 1))) >> (32 - bits);
}

static inline int32_t row_bytes_w4(int32_t weights)
{
    return (weights + 1) >> 1;
}

static inline void step_w4(pair *p, int32_t value)
{
    p->sum0 += value * field(*p->row0, p->phase, 4);
    p->sum1 += value * field(*p->row1, p->phase, 4);
    p->row0 += p->phase;
    p->row1 += p->phase;
    p->phase ^= 1;
}

static inline void multiply_w4(pair *p, const int16_t *input, int32_t count)
{
    if (p->phase != 0 && count > 0) {
        step_w4(p, *input++);
        count--;
    }
    const uint8_t *row0 = p->row0, *row1 = p->row1;
    int32_t sum0 = p->sum0, sum1 = p->sum1;
    for (; count >= 2; count -= 2, input += 2) {
        const uint32_t byte0 = *row0++, byte1 = *row1++;
        sum0 += input[0] * field(byte0, 0, 4);
        sum1 += input[0] * field(byte1, 0, 4);
        sum0 += input[1] * field(byte0, 1, 4);
        sum1 += input[1] * field(byte1, 1, 4);
    }
    p->row0 = row0;
    p->row1 = row1;
    p->sum0 = sum0;
    p->sum1 = sum1;
    if (count > 0) {
        step_w4(p, *input);
    }
}

static inline void skip_w4(pair *p, int32_t zero, int32_t count)
{
    for (; count > 0; count--) {
        step_w4(p, zero);
    }
}

/*
 * Convolution, weights (O, H, W, I); a fully connected layer is one 1x1 window. Two output channels
 * share each input. `bias` holds bias - input_zero * sum(weights); so padding counts as input_zero.
 */
KERNEL void conv_w4_a16(const int16_t *input, int16_t *output, const window *g,
                         const uint8_t *weights, const int32_t *bias, const int32_t *multiplier,
                         const int8_t *right)
{
    const int32_t channels = g->output_channels;
    const int32_t bytes = row_bytes_w4(g->kernel_height * g->kernel_width * g->input_channels);
    for (int32_t y = 0; y < g->output_height; y++) {
        for (int32_t x = 0; x < g->output_width; x++) {
            const int32_t top = y * g->stride_y - g->top;
            const int32_t left = x * g->stride_x - g->left;
            const int whole = g->dilation_x == 1 && left >= 0 &&
                              left + g->kernel_width <= g->input_width;
            const int32_t taps = whole ? g->kernel_width : 1; /* that lie side by side */
            const int32_t run = taps * g->input_channels;
            for (int32_t o = 0; o < channels; o += 2) {
                const int32_t next = o + 1 < channels ? o + 1 : o;
                pair p = {weights + o * bytes, weights + next * bytes, 0, bias[o], bias[next]};
                for (int32_t ky = 0; ky < g->kernel_height; ky++) {
                    const int32_t row = top + ky * g->dilation_y;
                    const int covered = inside(row, g->input_height);
                    for (int32_t kx = 0; kx < g->kernel_width; kx += taps) {
                        const int32_t column = left + kx * g->dilation_x;
                        if (covered && inside(column, g->input_width)) {
                            const int32_t pixel = row * g->input_width + column;
                            multiply_w4(&p, input + pixel * g->input_channels, run);
                        } else {
                            skip_w4(&p, g->input_zero, run);
                        }
                    }
                }
                p.sum0 = requantize_wide(p.sum0, multiplier[o], right[o]) + g->output_zero;
                p.sum1 = requantize_wide(p.sum1, multiplier[next], right[next]) + g->output_zero;
                output[o] = clamp(p.sum0, g->low, g->high);
                output[next] = clamp(p.sum1, g->low, g->high);
            }
            output += channels;
        }
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
    196, 78, 89, 78, 1, 94, 113, 249, 62, 0, 55, 189, 207, 13, 5, 148, 37, 87, 153, 12
};

static const uint8_t op_1_layers_b0_weights[72] = {
    247, 21, 157, 162, 198, 187, 64, 69, 236, 229, 116, 71, 108, 12, 2, 47, 190, 32, 195, 59,
    148, 188, 89, 163, 244, 113, 75, 13, 42, 94, 160, 39, 47, 47, 36, 100, 23, 155, 123, 194,
    177, 247, 70, 181, 198, 53, 149, 38, 234, 229, 90, 50, 123, 59, 212, 125, 85, 94, 238, 10,
    183, 189, 63, 110, 32, 227, 89, 241, 203, 162, 44, 247
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
    conv_w4_a16((int16_t *)(void *)(arena + 128), (int16_t *)(void *)(arena + 0), &shape,
        op_0_first_weights, op_0_first_bias, op_0_first_multiplier, op_0_first_right);
}

/* conv2d: layers.b0 */
static NO_INLINE void tiny_op_1_layers_b0(int8_t *arena)
{
    static const window shape = {4, 4, 4, 4, 4, 4, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, -32768, 32767};
    conv_w4_a16((int16_t *)(void *)(arena + 0), (int16_t *)(void *)(arena + 128), &shape,
        op_1_layers_b0_weights, op_1_layers_b0_bias, op_1_layers_b0_multiplier,
        op_1_layers_b0_right);
}

/* add: add */
static NO_INLINE void tiny_op_2_add(int8_t *arena)
{
    static const elementwise shape = {64, 0, 0, 0, 0, 32767, 1866846546, 14, 2049232676, 2};
    add_a16((int16_t *)(void *)(arena + 0), (int16_t *)(void *)(arena + 128), (int16_t *)(void
        *)(arena + 256), &shape);
}

/* pool2d: adaptive_avg_pool2d */
static NO_INLINE void tiny_op_3_adaptive_avg_pool2d(int8_t *arena)
{
    static const window shape = {4, 4, 4, 1, 1, 4, 4, 4, 4, 4, 0, 0, 1, 1, 0, 0, -32768, 32767};
    average_pool_a16((int16_t *)(void *)(arena + 256), (int16_t *)(void *)(arena + 12), &shape);
}

/* fully_connected: hidden */
static NO_INLINE void tiny_op_5_hidden(int8_t *arena)
{
    static const window shape = {1, 1, 4, 1, 1, 6, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 32767};
    conv_w4_a16((int16_t *)(void *)(arena + 12), (int16_t *)(void *)(arena + 0), &shape,
        op_5_hidden_weights, op_5_hidden_bias, op_5_hidden_multiplier, op_5_hidden_right);
}

/* fully_connected: fc */
static NO_INLINE void tiny_op_6_fc(int8_t *arena)
{
    static const window shape = {1, 1, 6, 1, 1, 5, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, -32768, 32767};
    conv_w4_a16((int16_t *)(void *)(arena + 0), (int16_t *)(void *)(arena + 12), &shape,
        op_6_fc_weights, op_6_fc_bias, op_6_fc_multiplier, op_6_fc_right);
}

int16_t *tiny_input(void *arena)
{
    return (int16_t *)(void *)((int8_t *)arena + 128);
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
