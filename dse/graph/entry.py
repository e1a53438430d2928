"""How the input of a network lies in its arena."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from dse.errors import GraphError
from dse.graph.ir import Graph
from dse.graph.numerics import INTEGER_LIMITS


def entry_shape(graph: Graph, given: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one input, channels first; GraphError when one of shape `given` has another size."""
    tensor = graph.tensors[graph.input]
    shape = tensor.shape
    wanted = (shape[2], *shape[:2]) if len(shape) == 3 else shape
    if int(np.prod(given)) != tensor.elements:
        raise GraphError(f"inputs of shape {given}; the graph takes {wanted}")
    return wanted


def input_bytes(graph: Graph, inputs: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """Float inputs (N, C, H, W), (N, C, L) or (N, F) as they lie in the arena: (N, bytes).

    Quantized where the graph is (half to even, clipped), rows of pixels of channels, in the type of
    the input tensor: `.view(tensor.dtype)` gives its values back. GraphError for another size.
    """
    tensor = graph.tensors[graph.input]
    values = np.asarray(inputs)
    values = values.reshape(-1, *entry_shape(graph, values.shape[1:]))
    if graph.integer:
        steps = np.rint(values.astype(np.float64) / cast(float, tensor.scale)) + tensor.zero_point
        values = steps.clip(*INTEGER_LIMITS[tensor.dtype])
    if values.ndim == 4:
        values = values.transpose(0, 2, 3, 1)
    rows = values.reshape(len(values), -1)
    return np.ascontiguousarray(rows, dtype=tensor.dtype).view(np.int8)
