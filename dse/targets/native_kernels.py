"""Which of our kernels runs an operator: the rule that emission and the cost model share."""

from __future__ import annotations

from dataclasses import dataclass

from dse.graph.blocks import block_grid, block_shape
from dse.graph.ir import (
    Add,
    Concat,
    Conv2D,
    FullyConnected,
    Graph,
    Lookup,
    Mul,
    Op,
    Pad,
    Pool2D,
    Reshape,
    Softmax,
    WeightedOp,
)
from dse.targets.cycles import kernel_class
from dse.targets.encoding import Encoding

ACCUMULATOR_LIMIT = 2**31
# Depthwise kernels work on four channels at a time; fewer take the general kernel.
LANES = 4
# Those of the vector extension on eight.
MVE_LANES = 8
# The DSP kernels multiply narrow weights by the place they have in their byte.
PLACE = {8: 1, 4: 16, 2: 64}
LONG = 1 << 16
# How the files of kernels end that unpack weights, or widen values, for those of fewer than 8 bits.
NARROW = "_narrow"
# How those begin that read weights through a code book.
BOOK = "book_"
# The one that walks kept blocks of weights; its name ends in what it multiplies at once.
BLOCKS = "block_conv"
INT16_BYTES = 2
# Mean magnitude of 8-bit weights as a share of the largest; at 2 bits about 0.7 of 1.
MEAN_SHARE = 0.3


@dataclass(frozen=True)
class Choice:
    """A kernel's file, the container bits of its weights, and what it expects.

    `folded`: the bias has taken in the input's zero point. `value` is the C type of what a DSP
    block multiplies, empty for kernels without one. `form` is what a kernel of sparse blocks
    multiplies at once, output channels by columns.
    """

    file: str
    bits: int
    folded: bool = False
    value: str = ""
    form: str = ""

    @property
    def function(self) -> str:
        """The C function."""
        if self.form:
            return f"{self.file}_{self.form}"
        plain = self.file == "dsp_depthwise" or self.file.startswith(("mve_", BOOK))
        return self.file if plain else f"{self.file.removesuffix(NARROW)}_w{self.bits}"

    @property
    def columns(self) -> bool:
        """Whether it multiplies values that it has widened into scratch."""
        return self.file in ("dsp_conv", "mve_conv", "dsp_pointwise_narrow")

    def scratch_bytes(self, op: WeightedOp, int16: bool) -> int:
        """Working memory: columns of values, or unpacked weights; `int16` is what activations are.

        Two columns of int16, each of whole fours; of Helium one of activations. Two rows of a code
        book's weights, or all of a depthwise layer's. Of kept blocks, see `block_scratch`.
        """
        if self.file == BLOCKS:
            return block_scratch(op, self.bits)
        depth = op.weight.size // op.weight.shape[0]
        if self.file == f"{BOOK}conv":
            return depth * min(2, op.weight.shape[0])
        if self.file.startswith(BOOK):
            return op.weight.size
        if self.file == "dsp_depthwise_narrow":
            return op.weight.size
        if self.file == "mve_conv":
            return depth * (INT16_BYTES if int16 else 1)
        return 2 * (-(-depth // 4) * 4) * INT16_BYTES if self.columns else 0


def choose(
    op: WeightedOp,
    encoding: Encoding,
    bound: int,
    dsp: bool,
    mve: bool = False,
    int16: bool = False,
) -> Choice:
    """The kernel of an integer layer; `bound` is the largest accumulator, `dsp` the variant.

    With `mve`, dense 8-bit layers take the kernels of the vector extension. `int16` activations
    need no widening.

    The bound of a graph of shapes is not known; 0 stands for one that fits, as all but layers of
    tens of thousands of inputs do.
    """
    bits = encoding.container_bits
    if encoding.layout == "sparse":
        return Choice("sparse", bits)
    if encoding.layout in ("block-sparse", "shared blocks"):
        return Choice(BLOCKS, bits, folded=True, form=block_form(op))
    if encoding.layout == "code book":
        return _through_book(op, bits)
    if mve and bits == 8 and bound < ACCUMULATOR_LIMIT and not _narrow(op):
        return _vectors(op)
    if isinstance(op, Conv2D) and op.depthwise:
        if op.weight.shape[0] != op.groups or op.groups < LANES:
            return Choice("depthwise_any", bits)
        if not dsp or op.dilation != (1, 1) or bound >= ACCUMULATOR_LIMIT:
            return Choice("depthwise", bits)
        return Choice("dsp_depthwise" if bits == 8 else "dsp_depthwise_narrow", bits)
    if not dsp or bound * PLACE[bits] >= ACCUMULATOR_LIMIT:
        return Choice("conv", bits, folded=True)
    if isinstance(op, FullyConnected):
        return Choice("dsp_vector", bits, folded=True)
    if kernel_class(op) == "pointwise" and (bits == 8 or int16):
        return Choice("dsp_pointwise", bits, folded=True, value="int8_t")
    if kernel_class(op) == "pointwise":
        return Choice("dsp_pointwise_narrow", bits, folded=True, value="mixed")
    return Choice("dsp_conv", bits, value="int16_t")


def block_form(op: WeightedOp) -> str:
    """Output channels by columns that a kernel multiplies at once: a block, or a column of one.

    A block that may reach into the next tap, whose input lies elsewhere, is taken column by column.
    """
    rows, columns = block_shape(op.weight.pattern)
    return f"{rows}x{1 if op.weight.shape[-1] % columns else columns}"


def block_scratch(op: WeightedOp, bits: int) -> int:
    """Bytes of the list of a row of blocks and, below 8 bits, of their weights.

    The list: 16 bits a block or column, after where each row of the window starts in it.
    """
    rows, columns = block_shape(op.weight.pattern)
    most = min(op.weight.blocks, block_grid(op.weight.shape, op.weight.pattern)[1])
    depth = op.weight.size // op.weight.shape[0]
    whole = block_form(op) == f"{rows}x{columns}"
    listed = most if whole else min(depth, most * columns)
    starts = 1 + (op.kernel[0] if isinstance(op, Conv2D) else 1)
    return 2 * (starts + listed) + (0 if bits == 8 else most * rows * columns)


def _through_book(op: WeightedOp, bits: int) -> Choice:
    """The plain kernels of 8-bit weights behind a decoder, in every variant."""
    if not isinstance(op, Conv2D) or not op.depthwise:
        return Choice(f"{BOOK}conv", bits, folded=True)
    several = op.weight.shape[0] != op.groups or op.groups < LANES
    return Choice(f"{BOOK}depthwise_any" if several else f"{BOOK}depthwise", bits)


def _narrow(op: WeightedOp) -> bool:
    """A depthwise layer with fewer channels than a vector, or several outputs a channel."""
    if not isinstance(op, Conv2D) or not op.depthwise:
        return False
    return op.weight.shape[0] != op.groups or op.groups < MVE_LANES


def _vectors(op: WeightedOp) -> Choice:
    if isinstance(op, Conv2D) and op.depthwise:
        return Choice("mve_depthwise", 8)
    pointwise = isinstance(op, FullyConnected) or kernel_class(op) == "pointwise"
    return Choice("mve_pointwise" if pointwise else "mve_conv", 8, folded=True)


def kernels_of(
    graph: Graph, op: Op, encoding: Encoding | None, dsp: bool, mve: bool = False
) -> tuple[str, ...]:
    """The C functions that an operator calls; float32 ones end in _f32.

    `encoding` is that of its weights, None without weights. Empty for a reshape, which is taken to
    lie in place.
    """
    suffix = _suffix(graph.tensors[op.inputs[0]].dtype)
    if isinstance(op, Conv2D | FullyConnected):
        assert encoding is not None
        return (_weighted(op, encoding, dsp, mve, suffix),)
    if isinstance(op, Pool2D):
        return (f"{op.mode}_pool{suffix}",)
    if isinstance(op, Lookup):
        return (_lookup(op.function, suffix),)
    if isinstance(op, Concat):
        return (f"copy{suffix}",)
    if isinstance(op, Pad):
        return (f"fill{suffix}", f"copy{suffix}")
    if isinstance(op, Add | Mul | Softmax):
        return (f"{op.kind}{suffix}",)
    return () if isinstance(op, Reshape) else (op.kind,)


def _suffix(dtype: str) -> str:
    return {"float32": "_f32", "int16": "_a16"}.get(dtype, "")


def _lookup(function: str, suffix: str) -> str:
    """Int16 curves share a table and clamps need none; other functions have one of their own."""
    if suffix == "_a16" and function in ("sigmoid", "tanh"):
        return f"{function}_a16"
    if suffix == "_a16" and function in ("relu", "relu6"):
        return "rescale_a16"
    return f"lookup_{function}_f32" if suffix == "_f32" else f"lookup{suffix}"


def _weighted(op: WeightedOp, encoding: Encoding, dsp: bool, mve: bool, suffix: str) -> str:
    long = "_long" if op.weight.kept >= LONG else ""
    if suffix == "_f32":
        return f"sparse_f32{long}" if encoding.layout == "sparse" else "conv_f32"
    bound = typical_bound(op) if suffix == "_a16" else 0
    wide = "_wide" if bound >= ACCUMULATOR_LIMIT else ""
    choice = choose(op, encoding, bound, dsp, mve, int16=suffix == "_a16")
    found = f"{choice.function}{suffix}{wide}"
    return found + long if encoding.layout == "sparse" else found


def typical_bound(op: WeightedOp) -> int:
    """What int16 activations may sum up to with weights of usual size; the true bound needs values.

    The kept weights of a row at the mean magnitude that scaling by the largest leaves.
    """
    limit = (1 << op.weight.bits - 1) - 1
    magnitude = limit * (MEAN_SHARE + (1 - MEAN_SHARE) / float(limit + 1) ** 0.75)
    return int(2**15 * magnitude * op.weight.kept / op.weight.shape[0])
