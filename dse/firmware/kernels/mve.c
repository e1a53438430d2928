/* needs: dsp */
/*
 * Helium, the vector extension of Cortex-M55 and M85: 16 bytes in a register. Without it the
 * same is computed in plain C, so that any host can test it.
 */
#if defined(__ARM_FEATURE_MVE) && defined(__GNUC__)
#include <arm_mve.h>
#define HELIUM
#endif
