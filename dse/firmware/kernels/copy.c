/* needs: keep_loop */
/* `rows` runs of `count` values, from and to arrays of different pitch. */
static void copy$suffix(const $value *input, $value *output, int32_t rows, int32_t count,
                 int32_t input_pitch, int32_t output_pitch)
{
    for (int32_t row = 0; row < rows; row++) {
        for (int32_t i = 0; i < count; i++) {
            output[i] = input[i];
            KEEP_LOOP();
        }
        input += input_pitch;
        output += output_pitch;
    }
}
