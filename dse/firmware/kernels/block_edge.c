/* needs: rolled window inside block_list block_before block_$form block_skip */
/*
 * A window that reaches past the input, or whose taps lie apart. Of taps that lie side by side some
 * are missed, some are met, and some are missed again.
 */
static void block_edge_$form$suffix$wide(const $element *input, const window *g, const block_list *blocks,
                      int32_t top, int32_t left, $sum *sums)
{
    const int32_t inputs = g->input_channels, width = g->input_width, zero = g->input_zero;
    const int32_t taps = g->kernel_width, side = g->dilation_x == 1 ? taps : 1;
    const int32_t cells = $rows * $step; /* an entry of the list */
    const int8_t *const weights = blocks->weights;
    const uint16_t *const list = blocks->list;
    int32_t at = 0, column = 0; /* in the list, and of the weights */
    ROLLED
    for (int32_t ky = 0; ky < g->kernel_height; ky++) {
        const int32_t row = top + ky * g->dilation_y, last = blocks->starts[ky + 1];
        const int covered = inside(row, g->input_height);
        int32_t across = left;
        ROLLED
        for (int32_t kx = 0; kx < taps; kx += side, across += g->dilation_x) {
            const int32_t base = (row * width + across) * inputs - column;
            const int32_t next = column + side * inputs;
            const int32_t end = kx + side < taps ? listed_before(list, at, last, next) : last;
            int32_t from = at, to = end;
            if (!covered || across >= width || across + side <= 0) {
                from = end;
            } else {
                if (across < 0) {
                    from = listed_before(list, at, end, column - across * inputs);
                }
                if (across + side > width) {
                    to = listed_before(list, from, end, column + (width - across) * inputs);
                }
                multiply_$form$wide(sums, input, base, list + from, weights + from * cells,
                                    to - from);
            }
            if (from > at) {
                skip_blocks$wide(sums, $rows, weights + at * cells, (from - at) * $step, zero);
            }
            if (end > to) {
                skip_blocks$wide(sums, $rows, weights + to * cells, (end - to) * $step, zero);
            }
            at = end;
            column = next;
        }
    }
}
