/* needs: weight_w4 */
/* Depthwise weights of 4 bits lie (O, H, W), each channel starting on a byte. */
static inline int32_t tap_w4(const uint8_t *weights, int32_t channel, int32_t tap, int32_t channels,
                             int32_t bytes)
{
    (void)channels;
    return weight_w4(weights + channel * bytes, tap);
}
