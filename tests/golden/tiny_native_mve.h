#ifndef TINY_H
#define TINY_H

#include <stdint.h>

#define TINY_INPUT_BYTES 128
#define TINY_OUTPUT_BYTES 5
#define TINY_ARENA_BYTES 264 /* to be aligned to 4 bytes */

#ifdef __cplusplus
extern "C" {
#endif

/* Where to write the input (int8, already quantized; height, width, channels) before each run. */
int8_t *tiny_input(void *arena);

/* Where the output is after a run, until the next input is written. */
const int8_t *tiny_output(const void *arena);

/* One inference. The arena holds all working memory; nothing else is written. */
void tiny_run(void *arena);

#ifdef __cplusplus
}
#endif

#endif
