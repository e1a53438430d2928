/* needs: pair */
static inline int32_t row_bytes_w8$wide(int32_t weights)
{
    return weights;
}

static inline void multiply_w8$wide(pair$wide *p, const $element *input, int32_t count)
{
    const int8_t *row0 = (const int8_t *)p->row0, *row1 = (const int8_t *)p->row1;
    $sum sum0 = p->sum0, sum1 = p->sum1;
    p->row0 += count;
    p->row1 += count;
    for (; count >= 4; count -= 4, input += 4, row0 += 4, row1 += 4) {
        sum0 += input[0] * row0[0];
        sum1 += input[0] * row1[0];
        sum0 += input[1] * row0[1];
        sum1 += input[1] * row1[1];
        sum0 += input[2] * row0[2];
        sum1 += input[2] * row1[2];
        sum0 += input[3] * row0[3];
        sum1 += input[3] * row1[3];
    }
    for (; count > 0; count--) {
        const int32_t value = *input++;
        sum0 += value * *row0++;
        sum1 += value * *row1++;
    }
    p->sum0 = sum0;
    p->sum1 = sum1;
}

static inline void skip_w8$wide(pair$wide *p, int32_t zero, int32_t count)
{
    for (; count > 0; count--) {
        p->sum0 += zero * (int8_t)*p->row0++;
        p->sum1 += zero * (int8_t)*p->row1++;
    }
}
