/* needs: high_mul divide_by_power_of_two clamp */
/* Fixed point as in gemmlowp and TensorFlow Lite: Qn has n integer bits and 31 - n after them. */
static inline int32_t saturating_shift(int32_t x, int32_t left)
{
    const int64_t wide = (int64_t)x * (1 << left);
    return (int32_t)(wide < INT32_MIN ? INT32_MIN : wide > INT32_MAX ? INT32_MAX : wide);
}

/* exp(x) in Q0 for x <= 0 in Q5: a Taylor series on the last quarter, then exp of powers of two. */
static int32_t exp_on_negative(int32_t x)
{
    static const int32_t powers[7] = {1672461947, 1302514674, 790015084, 290630308,
                                      39332535,   720401,     242};
    const int32_t quarter = 1 << 24;
    const int32_t last = (x & (quarter - 1)) - quarter;
    const int32_t a = saturating_shift(last, 5) + (1 << 28);
    const int32_t a2 = high_mul(a, a), a3 = high_mul(a2, a), a4 = high_mul(a2, a2);
    const int32_t third = high_mul(divide_by_power_of_two(a4, 2) + a3, 715827883);
    const int32_t tail = divide_by_power_of_two(third + a2, 1);
    int32_t result = 1895147668 + high_mul(a + tail, 1895147668);
    const int32_t rest = last - x;
    for (int32_t i = 0; i < 7; i++) {
        if ((rest & (1 << (24 + i))) != 0) {
            result = high_mul(result, powers[i]);
        }
    }
    return x == 0 ? INT32_MAX : result;
}

/* 1 / (total * 2^headroom) with total * 2^headroom in [1, 2), both Q0: three Newton steps. */
static int32_t reciprocal(uint32_t total, int32_t headroom)
{
    const int32_t half = (int32_t)((total << headroom) >> 1);
    int32_t x = 1515870810 + high_mul(half, -1010580540);
    for (int32_t i = 0; i < 3; i++) {
        x += saturating_shift(high_mul(x, (1 << 29) - high_mul(half, x)), 2);
    }
    return saturating_shift(x, 1);
}

/* Rows of int8 logits -> int8 with scale 1/256 and zero point -128. */
static void softmax(const int8_t *input, int8_t *output, int32_t rows, int32_t depth,
                    int32_t multiplier, int32_t left, int32_t lowest)
{
    for (; rows > 0; rows--, input += depth, output += depth) {
        int32_t largest = INT8_MIN, headroom = 0;
        uint32_t total = 0;
        for (int32_t i = 0; i < depth; i++) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < depth; i++) {
            const int32_t difference = input[i] - largest;
            if (difference >= lowest) {
                const int32_t x = high_mul(difference * (1 << left), multiplier);
                total += (uint32_t)divide_by_power_of_two(exp_on_negative(x), 12);
            }
        }
        while ((total << headroom) >> 31 == 0) {
            headroom++;
        }
        const int32_t scale = reciprocal(total, headroom), shift = 35 - headroom;
        for (int32_t i = 0; i < depth; i++) {
            const int32_t difference = input[i] - largest;
            int32_t value = 0;
            if (difference >= lowest && shift < 32) {
                const int32_t x = high_mul(difference * (1 << left), multiplier);
                value = divide_by_power_of_two(high_mul(scale, exp_on_negative(x)), shift);
            }
            output[i] = clamp(value - 128, INT8_MIN, INT8_MAX);
        }
    }
}
