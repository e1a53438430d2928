/* What a compiler may call without being asked, for tool chains that come without a C library.
 * Compiled with -fno-builtin, or each function would become a call to itself. Parts that nothing
 * calls are dropped by the linker; parts that are called count as flash of the network. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
  uint8_t *target = to;
  const uint8_t *source = from;
  if ((((uintptr_t)target | (uintptr_t)source) & 3u) == 0u) {
    for (; bytes >= 4u; bytes -= 4u, target += 4, source += 4) {
      *(uint32_t *)(void *)target = *(const uint32_t *)(const void *)source;
    }
  }
  while (bytes-- > 0u) {
    *target++ = *source++;
  }
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  uint8_t *target = to;
  while (bytes-- > 0u) {
    *target++ = (uint8_t)value;
  }
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  uint8_t *target = to;
  const uint8_t *source = from;
  if (target < source) {
    return memcpy(to, from, bytes);
  }
  while (bytes-- > 0u) {
    target[bytes] = source[bytes];
  }
  return to;
}

void __aeabi_memcpy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void __aeabi_memcpy4(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void __aeabi_memcpy8(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void __aeabi_memset(void *to, size_t bytes, int value) { memset(to, value, bytes); }
void __aeabi_memset4(void *to, size_t bytes, int value) { memset(to, value, bytes); }
void __aeabi_memset8(void *to, size_t bytes, int value) { memset(to, value, bytes); }
void __aeabi_memclr(void *to, size_t bytes) { memset(to, 0, bytes); }
void __aeabi_memclr4(void *to, size_t bytes) { memset(to, 0, bytes); }
void __aeabi_memclr8(void *to, size_t bytes) { memset(to, 0, bytes); }
