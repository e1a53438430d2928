/* Two rows of weights as they are read, side by side, and what they have summed up. */
typedef struct {
    const uint8_t *row0, *row1;
    int32_t phase; /* weights already taken from the current bytes */
    $sum sum0, sum1;
} pair$wide;
