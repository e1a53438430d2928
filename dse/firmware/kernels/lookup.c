/* An element-wise function: `table` holds its values for -128 to 127. */
static void lookup(const int8_t *input, int8_t *output, int32_t elements, const int8_t *table)
{
    for (int32_t i = 0; i < elements; i++) {
        output[i] = table[input[i] + 128];
    }
}
