/* The harness around a network: vector table, reset, and a loop for QEMU's semihosting.
 * It is no part of the network: the linker script keeps it in sections of its own, which no
 * size counts. An emulator that calls the network by itself starts nothing here.
 *
 * QEMU: reads inputs from dse_in.bin, writes outputs to dse_out.bin, and to dse_ticks.bin the
 * SysTick counts of DSE_REPEATS empty calls and of as many runs, and the stack of a run. */
#include DSE_HEADER
#include <stdint.h>

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define NETWORK(part) JOIN(DSE_NAME, part)
#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)

__attribute__((aligned(16))) uint8_t dse_arena[DSE_ARENA_BYTES];
static int8_t saved[DSE_INPUT_BYTES];
extern uint32_t dse_stack_top, dse_stack_bottom;

static int host(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static int host_open(const char *name, uint32_t length, uint32_t mode) {
  const uintptr_t arguments[3] = {(uintptr_t)name, mode, length};
  return host(1, arguments);
}

/* Bytes that were not transferred (semihosting: 0 is success). */
static int host_transfer(int operation, int file, const void *data, uint32_t bytes) {
  const uintptr_t arguments[3] = {(uintptr_t)file, (uintptr_t)data, bytes};
  return host(operation, arguments);
}

/* One instruction with every compiler: what a call itself costs is taken off. */
__attribute__((naked)) static void empty(void *arena __attribute__((unused))) {
  __asm__ volatile("bx lr");
}

static int8_t *input_bytes(void) { return (int8_t *)(void *)NETWORK(_input)(dse_arena); }

static void restore(void) {
  int8_t *input = input_bytes();
  for (uint32_t i = 0; i < DSE_INPUT_BYTES; i++) {
    input[i] = saved[i];
  }
}

/* Ticks of DSE_REPEATS calls, each on the first input, which a network may overwrite; putting it
 * back is the same work for every function called. The counter has 24 bits: one call must take
 * fewer ticks than that. */
__attribute__((noinline)) static uint64_t ticks(void (*call)(void *)) {
  uint64_t sum = 0;
  uint32_t before;
  SYST_RVR = 0xFFFFFFu;
  SYST_CVR = 0;
  SYST_CSR = 5;
  before = SYST_CVR;
  for (int i = 0; i < DSE_REPEATS; i++) {
    uint32_t now;
    restore();
    call(dse_arena);
    now = SYST_CVR;
    sum += (before - now) & 0xFFFFFFu;
    before = now;
  }
  return sum;
}

/* How far below the stack pointer of the call the network writes. */
__attribute__((noinline)) static uint32_t stack_bytes(void) {
  uintptr_t here;
  volatile uint8_t *low = (volatile uint8_t *)&dse_stack_bottom;
  restore();
  __asm__ volatile("mov %0, sp" : "=r"(here));
  for (volatile uint8_t *at = low; (uintptr_t)at < here; at++) {
    *at = 0xA5;
  }
  NETWORK(_run)(dse_arena);
  while ((uintptr_t)low < here && *low == 0xA5) {
    low++;
  }
  return (uint32_t)((here - (uintptr_t)low + 3u) & ~3u);
}

int main(void) {
  int first = 1;
  uint64_t counts[3];
  const int in = host_open("dse_in.bin", 10, 1);
  const int out = host_open("dse_out.bin", 11, 5);
  while (host_transfer(6, in, input_bytes(), DSE_INPUT_BYTES) == 0) {
    if (first) {
      for (uint32_t i = 0; i < DSE_INPUT_BYTES; i++) {
        saved[i] = input_bytes()[i];
      }
      first = 0;
    }
    NETWORK(_run)(dse_arena);
    host_transfer(5, out, NETWORK(_output)(dse_arena), DSE_OUTPUT_BYTES);
  }
  counts[0] = ticks(empty);
  counts[1] = ticks(NETWORK(_run));
  counts[2] = stack_bytes();
  host_transfer(5, host_open("dse_ticks.bin", 13, 5), counts, sizeof counts);
  host(0x18, (const void *)0x20026);
  for (;;) {
  }
}

void dse_stop(void) {
  for (;;) {
  }
}

void dse_reset(void) {
#if DSE_FPU
  CPACR |= 0xFu << 20;
  __asm__ volatile("dsb\n\tisb");
#endif
  (void)main();
  dse_stop();
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &dse_stack_top,           (const void *)dse_reset, (const void *)dse_stop,
    (const void *)dse_stop,   (const void *)dse_stop,  (const void *)dse_stop,
    (const void *)dse_stop,   (const void *)dse_stop,  (const void *)dse_stop,
    (const void *)dse_stop,   (const void *)dse_stop,  (const void *)dse_stop,
    (const void *)dse_stop,   (const void *)dse_stop,  (const void *)dse_stop,
    (const void *)dse_stop,
};
