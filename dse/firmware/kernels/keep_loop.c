/* Keeps the compiler from turning a loop into a call of memcpy or memset. */
#if defined(__GNUC__)
#define KEEP_LOOP() __asm__ volatile("" ::: "memory")
#else
#define KEEP_LOOP()
#endif
