/* Runs every test vector through @{name} on this machine and compares each output value.
 * Exit code 0: all are as expected. */
#include "@{name}.h"
#include "test_vectors.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

static union {
    uint32_t alignment;
    uint8_t bytes[@{NAME}_ARENA_BYTES];
} arena;

static int differs(vector_element found, vector_element expected)
{
    const double distance = (double)found - (double)expected;
    return !(distance <= VECTOR_TOLERANCE && -distance <= VECTOR_TOLERANCE);
}

static unsigned highest(const vector_element *values)
{
    unsigned best = 0;
    for (unsigned i = 1; i < VECTOR_OUTPUTS; i++) {
        if (values[i] > values[best]) {
            best = i;
        }
    }
    return best;
}

int main(void)
{
    unsigned failed = 0;
    unsigned right = 0;
    for (unsigned i = 0; i < VECTORS; i++) {
        memset(arena.bytes, 0xA5, sizeof arena.bytes);
        memcpy(@{name}_input(&arena), vector_inputs[i], @{NAME}_INPUT_BYTES);
        @{name}_run(&arena);
        const vector_element *found = @{name}_output(&arena);
        int wrong = 0;
        for (unsigned k = 0; k < VECTOR_OUTPUTS; k++) {
            if (!differs(found[k], vector_outputs[i][k])) {
                continue;
            }
            if (wrong == 0) {
                printf("vector %u: output %u is %g, expected %g\n", i, k, (double)found[k],
                       (double)vector_outputs[i][k]);
            }
            wrong = 1;
        }
        failed += (unsigned)wrong;
        right += (unsigned)((int)highest(found) == vector_labels[i]);
    }
    printf("%s: %u of %u vectors give the expected output\n", failed == 0 ? "pass" : "FAIL",
           VECTORS - failed, VECTORS);
    if (vector_labels[0] >= 0) {
        printf("%u of %u are classified as labelled\n", right, VECTORS);
    }
    return failed == 0 ? 0 : 1;
}
