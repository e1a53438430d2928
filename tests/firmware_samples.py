"""Two fixed networks as hand-written C, with what they must answer, for the firmware tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.int8]
MULTIPLIER = 1518500250  # 0.7071 in Q31


@dataclass(frozen=True)
class Written:
    """What dse.firmware.build asks of sources."""

    name: str
    header: str
    source: str
    arena_bytes: int
    input_bytes: int
    output_bytes: int
    operators: tuple[str, ...]


def header(name: str) -> str:
    return (
        "#include <stdint.h>\n"
        f"int8_t *{name}_input(void *arena);\n"
        f"const int8_t *{name}_output(const void *arena);\n"
        f"void {name}_run(void *arena);\n"
    )


def _table(name: str, values: Bytes) -> str:
    body = ", ".join(str(value) for value in values.reshape(-1))
    return f"static const int8_t {name}[{values.size}] = {{{body}}};\n"


_REQUANTIZE = """
static int8_t requantize(int32_t sum, int shift) {
  int64_t product = (int64_t)sum * MULTIPLIER + ((int64_t)1 << (30 + shift));
  int32_t value = (int32_t)(product >> (31 + shift));
  return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}
""".replace("MULTIPLIER", str(MULTIPLIER))


def weights(count: int, seed: int) -> Bytes:
    return np.random.default_rng(seed).integers(-127, 128, count).astype(np.int8)


def dense() -> Written:
    """64 -> 16 -> 10 fully connected; both operators call one shared kernel."""
    source = (
        '#include "dense.h"\n'
        + _table("w0", weights(16 * 64, 1))
        + _table("w1", weights(10 * 16, 2))
        + _REQUANTIZE
        + """
__attribute__((noinline)) static int32_t dot(const int8_t *a, const int8_t *b, int count) {
  int32_t sum = 0;
  for (int i = 0; i < count; i++) sum += a[i] * b[i];
  return sum;
}
__attribute__((noinline)) static void dense_op0(int8_t *arena) {
  for (int o = 0; o < 16; o++) arena[64 + o] = requantize(dot(arena, w0 + 64 * o, 64), 8);
}
__attribute__((noinline)) static void dense_op1(int8_t *arena) {
  for (int o = 0; o < 10; o++) arena[80 + o] = requantize(dot(arena + 64, w1 + 16 * o, 16), 7);
}
int8_t *dense_input(void *arena) { return arena; }
const int8_t *dense_output(const void *arena) { return (const int8_t *)arena + 80; }
void dense_run(void *arena) { dense_op0(arena); dense_op1(arena); }
"""
    )
    return Written("dense", header("dense"), source, 96, 64, 10, ("dense_op0", "dense_op1"))


def conv() -> Written:
    """3x3 convolution of 8x8x4 to 6x6x8, then global maximum; uses a copy of a struct (memcpy)."""
    source = (
        '#include "conv.h"\n'
        + _table("w", weights(8 * 9 * 4, 3))
        + _REQUANTIZE
        + """
__attribute__((noinline)) static void conv_op0(const int8_t *in, int8_t *out) {
  for (int y = 0; y < 6; y++)
    for (int x = 0; x < 6; x++)
      for (int o = 0; o < 8; o++) {
        int32_t sum = 0;
        for (int ky = 0; ky < 3; ky++)
          for (int kx = 0; kx < 3; kx++)
            for (int c = 0; c < 4; c++)
              sum += in[((y + ky) * 8 + x + kx) * 4 + c] * w[((o * 3 + ky) * 3 + kx) * 4 + c];
        out[(y * 6 + x) * 8 + o] = requantize(sum, 9);
      }
}
__attribute__((noinline)) static void conv_op1(const int8_t *in, int8_t *out) {
  for (int o = 0; o < 8; o++) {
    int8_t best = -128;
    for (int i = 0; i < 36; i++) best = in[i * 8 + o] > best ? in[i * 8 + o] : best;
    out[o] = best;
  }
}
int8_t *conv_input(void *arena) { return arena; }
const int8_t *conv_output(const void *arena) { return (const int8_t *)arena; }
void conv_run(void *arena) {
  int8_t *bytes = arena;
  conv_op0(bytes, bytes + 256);
  conv_op1(bytes + 256, bytes);
}
"""
    )
    return Written("conv", header("conv"), source, 544, 256, 8, ("conv_op0", "conv_op1"))


def _requantize(sums: npt.NDArray[np.int64], shift: int) -> Bytes:
    scaled = (sums * MULTIPLIER + (1 << (30 + shift))) >> (31 + shift)
    clipped: Bytes = np.clip(scaled, -128, 127).astype(np.int8)
    return clipped


def dense_answer(inputs: Bytes) -> Bytes:
    hidden = _requantize(inputs.astype(np.int64) @ weights(16 * 64, 1).reshape(16, 64).T, 8)
    return _requantize(hidden.astype(np.int64) @ weights(160, 2).reshape(10, 16).T, 7)


def conv_answer(inputs: Bytes) -> Bytes:
    image = inputs.reshape(-1, 8, 8, 4).astype(np.int64)
    kernel = weights(8 * 36, 3).reshape(8, 3, 3, 4).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))
    sums = np.einsum("nyxcij,oijc->nyxo", windows, kernel)
    best: Bytes = np.max(_requantize(sums, 9), axis=(1, 2)).astype(np.int8)
    return best


def inputs(bytes_each: int, count: int) -> Bytes:
    values = np.random.default_rng(7).integers(-128, 128, (count, bytes_each))
    return values.astype(np.int8)


def assembled(name: str, body: str, arena_bytes: int = 64) -> Written:
    """A network whose one operator is assembly; its output is the arena's first byte."""
    lines = "".join(f'      "{line.strip()}\\n"\n' for line in body.strip().splitlines())
    source = (
        f'#include "{name}.h"\n'
        f"__attribute__((naked, noinline)) static void {name}_op0(void *arena) {{\n"
        f'  __asm__ volatile(".syntax unified\\n"\n{lines}  );\n}}\n'
        f"int8_t *{name}_input(void *arena) {{ return arena; }}\n"
        f"const int8_t *{name}_output(const void *arena) {{ return arena; }}\n"
        f"void {name}_run(void *arena) {{ {name}_op0(arena); }}\n"
    )
    return Written(name, header(name), source, arena_bytes, 4, 1, (f"{name}_op0",))
