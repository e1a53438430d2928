/* needs: weight_w2 */
/* Depthwise weights of 2 bits lie (O, H, W), each channel starting on a byte. */
static inline int32_t tap_w2(const uint8_t *weights, int32_t channel, int32_t tap, int32_t channels,
                             int32_t bytes)
{
    (void)channels;
    return weight_w2(weights + channel * bytes, tap);
}
