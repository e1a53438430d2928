/* needs: pair field */
static inline int32_t row_bytes_w2$wide(int32_t weights)
{
    return (weights + 3) >> 2;
}

static inline void step_w2$wide(pair$wide *p, int32_t value)
{
    p->sum0 += value * field(*p->row0, p->phase, 2);
    p->sum1 += value * field(*p->row1, p->phase, 2);
    p->phase = (p->phase + 1) & 3;
    p->row0 += p->phase == 0;
    p->row1 += p->phase == 0;
}

static inline void multiply_w2$wide(pair$wide *p, const $element *input, int32_t count)
{
    for (; p->phase != 0 && count > 0; count--) {
        step_w2$wide(p, *input++);
    }
    const uint8_t *row0 = p->row0, *row1 = p->row1;
    $sum sum0 = p->sum0, sum1 = p->sum1;
    for (; count >= 4; count -= 4, input += 4) {
        const uint32_t byte0 = *row0++, byte1 = *row1++;
        sum0 += input[0] * field(byte0, 0, 2);
        sum1 += input[0] * field(byte1, 0, 2);
        sum0 += input[1] * field(byte0, 1, 2);
        sum1 += input[1] * field(byte1, 1, 2);
        sum0 += input[2] * field(byte0, 2, 2);
        sum1 += input[2] * field(byte1, 2, 2);
        sum0 += input[3] * field(byte0, 3, 2);
        sum1 += input[3] * field(byte1, 3, 2);
    }
    p->row0 = row0;
    p->row1 = row1;
    p->sum0 = sum0;
    p->sum1 = sum1;
    for (; count > 0; count--) {
        step_w2$wide(p, *input++);
    }
}

static inline void skip_w2$wide(pair$wide *p, int32_t zero, int32_t count)
{
    for (; count > 0; count--) {
        step_w2$wide(p, zero);
    }
}
