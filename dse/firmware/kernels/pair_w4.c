/* needs: pair field */
static inline int32_t row_bytes_w4$wide(int32_t weights)
{
    return (weights + 1) >> 1;
}

static inline void step_w4$wide(pair$wide *p, int32_t value)
{
    p->sum0 += value * field(*p->row0, p->phase, 4);
    p->sum1 += value * field(*p->row1, p->phase, 4);
    p->row0 += p->phase;
    p->row1 += p->phase;
    p->phase ^= 1;
}

static inline void multiply_w4$wide(pair$wide *p, const $element *input, int32_t count)
{
    if (p->phase != 0 && count > 0) {
        step_w4$wide(p, *input++);
        count--;
    }
    const uint8_t *row0 = p->row0, *row1 = p->row1;
    $sum sum0 = p->sum0, sum1 = p->sum1;
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
        step_w4$wide(p, *input);
    }
}

static inline void skip_w4$wide(pair$wide *p, int32_t zero, int32_t count)
{
    for (; count > 0; count--) {
        step_w4$wide(p, zero);
    }
}
