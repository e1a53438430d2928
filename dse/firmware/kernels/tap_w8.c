/* Depthwise weights of 8 bits lie (H, W, O): neighbouring channels are neighbouring bytes. */
static inline int32_t tap_w8(const uint8_t *weights, int32_t channel, int32_t tap, int32_t channels,
                             int32_t bytes)
{
    (void)bytes;
    return (int8_t)weights[tap * channels + channel];
}
