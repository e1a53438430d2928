/* The taps of a window along one axis that meet the input: first <= tap < last. */
typedef struct {
    int32_t first, last;
} taps;

static inline taps met(int32_t start, int32_t dilation, int32_t kernel, int32_t size)
{
    taps found = {0, kernel};
    while (start + found.first * dilation < 0) {
        found.first++;
    }
    while (found.last > found.first && start + (found.last - 1) * dilation >= size) {
        found.last--;
    }
    return found;
}
