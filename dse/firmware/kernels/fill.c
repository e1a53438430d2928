/* needs: keep_loop */
static void fill$suffix($value *output, $value value, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        output[i] = value;
        KEEP_LOOP();
    }
}
