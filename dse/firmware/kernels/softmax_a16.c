/* needs: clamp interpolated divide_by_power_of_two */
/*
 * Rows of int16 logits -> int16 in Q15, as TensorFlow Lite: `exponentials` are exp on [-10, 0],
 * `reciprocals` 1 / (1 + x) on [0, 1], both in Q15. The exponentials are kept in the output.
 */
static void softmax_a16(const int16_t *input, int16_t *output, int32_t rows, int32_t depth,
                        int32_t multiplier, int32_t left, int32_t right,
                        const int16_t *exponentials, const int16_t *reciprocals)
{
    for (; rows > 0; rows--, input += depth, output += depth) {
        int32_t largest = INT16_MIN, total = 0, bits = 30;
        for (int32_t i = 0; i < depth; i++) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < depth; i++) {
            const int64_t wide = (int64_t)(input[i] - largest) * ((int64_t)1 << left);
            const int64_t high = (wide * multiplier + ((int64_t)1 << 30)) >> 31;
            const int32_t near = high < INT32_MIN ? INT32_MIN : (int32_t)high;
            const int32_t place = divide_by_power_of_two(near, right);
            const int32_t least = place < INT16_MIN - INT16_MAX ? INT16_MIN : place + INT16_MAX;
            output[i] = (int16_t)interpolated(least, exponentials);
            total += output[i];
        }
        while (total >> bits == 0) {
            bits--;
        }
        int32_t place = (int32_t)((((int64_t)total << (30 - bits)) + (1 << 13)) >> 14) - 0x18000;
        place = place > INT16_MAX ? INT16_MAX : place;
        const int32_t scale = interpolated(place, reciprocals);
        for (int32_t i = 0; i < depth; i++) {
            const int64_t product = (int64_t)output[i] * scale + ((int64_t)1 << (bits - 1));
            output[i] = clamp((int32_t)(product >> bits), 0, INT16_MAX);
        }
    }
}
