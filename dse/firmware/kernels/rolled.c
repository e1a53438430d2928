/* Keeps clang from unrolling a loop that runs a few times: bytes for nothing. */
#if defined(__clang__)
#define ROLLED _Pragma("clang loop unroll(disable)")
#else
#define ROLLED
#endif
