"""Code books: a layer's weights as indices of a few sub-vectors that all its channels share.

Weight sharing by k-means after Han et al., "Deep Compression", arXiv 1510.00149. The matrix of a
layer has one row an output channel and one column a weight of it, in the order in which weights lie
in flash; a row is cut into sub-vectors of 1, 2 or 4 weights, of which the last may stick out. What
is shared are 8-bit integers, in steps of each channel's own scale: integer arithmetic, and with it
every output, is that of the same weights stored one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.errors import CompressionError

Array = npt.NDArray[Any]
VECTORS = (1, 2, 4)
FEWEST, MOST = 4, 256
INDEX_BITS = (2, 4, 8)
LARGEST = 127
# Lloyd's iterations at most, and sub-vectors whose distances are held in memory at a time.
ROUNDS, AT_A_TIME = 30, 1 << 14


@dataclass(frozen=True)
class CodeBooks:
    """Which layers get a code book: entries by layer name, weights an entry, and the seed."""

    entries: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    vector: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, entries in self.entries.items():
            try:
                check_book(entries, self.vector)
            except CompressionError as error:
                raise CompressionError(f"layer '{name}': {error}") from error

    def of(self, name: str, shape: Sequence[int]) -> tuple[int, int]:
        """(Entries, vector) of the book of a layer, (0, 1) where it is no smaller with one."""
        entries = self.entries.get(name, 0)
        fits = entries and shrinks(shape, entries, self.vector)
        return (entries, self.vector) if fits else (0, 1)


NONE = CodeBooks()


def check_book(entries: int, vector: int) -> None:
    """Raises CompressionError for a size or a length that no kernel reads."""
    if not FEWEST <= entries <= MOST:
        raise CompressionError(
            f"a code book of {entries} entries; allowed: {FEWEST} to {MOST}, or 0 for none"
        )
    if vector not in VECTORS:
        raise CompressionError(f"code books of sub-vectors of {vector} weights; allowed: 1, 2 or 4")


def index_bits(entries: int) -> int:
    """Bits of a stored index: the narrowest of 2, 4 and 8."""
    return next(bits for bits in INDEX_BITS if 1 << bits >= entries)


def book_bytes(shape: Sequence[int], entries: int, vector: int) -> int:
    """Bytes of the indices, each row starting on a byte, and of the table."""
    indices = -(-math.prod(shape[1:]) // vector)
    row = -(-indices * index_bits(entries) // 8)
    return int(shape[0] * row + entries * vector)


def shrinks(shape: Sequence[int], entries: int, vector: int) -> bool:
    """Whether weights (O, ...) take fewer bytes through a code book than in 8 bits each."""
    return book_bytes(shape, entries, vector) < math.prod(shape)


def sub_vectors(rows: Array, vector: int) -> Array:
    """(O, indices, vector) of rows (O, depth), zeros where the last of a row sticks out."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % vector)))
    return padded.reshape(len(rows), -1, vector)


def read_table(values: Array, vector: int) -> Array:
    """The table (entries, vector) of integer weights (O, ...): every sub-vector once, ascending.

    What sticks out of a row is an entry only where none begins with it.
    """
    rows = values.reshape(len(values), -1)
    found = sub_vectors(rows, vector)
    whole = rows.shape[1] // vector
    table: Array = np.unique(found[:, :whole].reshape(-1, vector), axis=0)
    if whole < found.shape[1]:
        length = rows.shape[1] % vector
        ends = np.unique(found[:, whole], axis=0)
        known = {tuple(entry[:length]) for entry in table.tolist()}
        new = [end for end in ends.tolist() if tuple(end[:length]) not in known]
        table = np.array(sorted([*table.tolist(), *new]), dtype=values.dtype)
    return table


def read_indices(values: Array, table: Array) -> Array:
    """The indices (O, n) by which a table (entries, vector) gives back integer weights (O, ...)."""
    rows = values.reshape(len(values), -1)
    found = sub_vectors(rows, table.shape[1])
    points = found.reshape(-1, table.shape[1]).astype(np.float64)
    inside = _inside(found.shape, rows.shape[1])
    return _nearest(points, inside, table.astype(np.float64)).reshape(found.shape[:2])


def write_rows(table: Array, indices: Array, depth: int) -> Array:
    """The rows (O, depth) that indices (O, n) of a table mean."""
    rows: Array = table[indices].reshape(len(indices), -1)[:, :depth]
    return rows


def shared(rows: Array, scales: Array, entries: int, vector: int, seed: int) -> Array:
    """Integers (O, depth), int8, of float rows in steps of `scales` (O,), through one code book.

    Weighted k-means: what is minimised is the squared error of the weights themselves. Starts are
    drawn by distance (k-means++, Arthur & Vassilvitskii 2007) with `seed`.
    """
    check_book(entries, vector)
    depth = rows.shape[1]
    found = sub_vectors(rows / scales[:, None], vector)
    inside = _inside(found.shape, depth)
    points = found.reshape(-1, vector)
    weights = np.repeat(scales.astype(np.float64) ** 2, found.shape[1])
    weights /= weights.max()
    table = _starts(points, inside, weights, entries, np.random.default_rng(seed))
    nearest = _nearest(points, inside, table)
    for _ in range(ROUNDS):
        table = _means(points, inside * weights[:, None], nearest, table)
        before, nearest = nearest, _nearest(points, inside, table)
        if np.array_equal(before, nearest):
            break
    whole = np.clip(np.rint(table), -LARGEST, LARGEST)
    indices = _nearest(points, inside, whole).reshape(found.shape[:2])
    return write_rows(whole.astype(np.int8), indices, depth)


def _inside(shape: tuple[int, ...], depth: int) -> Array:
    """1 for every weight of the sub-vectors (O x indices, vector), 0 for what sticks out."""
    rows, indices, vector = shape
    row = (np.arange(indices * vector) < depth).reshape(indices, vector)
    return np.tile(row, (rows, 1)).astype(np.float64)


def _starts(
    points: Array, inside: Array, weights: Array, entries: int, source: np.random.Generator
) -> Array:
    table = np.empty((entries, points.shape[1]))
    distance = np.full(len(points), np.inf)
    chances = weights
    for entry in range(entries):
        total = chances.sum()
        share = chances / total if total > 0 else np.full(len(points), 1 / len(points))
        table[entry] = points[source.choice(len(points), p=share)]
        distance = np.minimum(distance, (((points - table[entry]) * inside) ** 2).sum(axis=1))
        chances = distance * weights
    return table


def _nearest(points: Array, inside: Array, table: Array) -> Array:
    """Index of the nearest entry of every point; the first of several."""
    found = np.empty(len(points), dtype=np.int64)
    for start in range(0, len(points), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        # |p - c|^2 without |p|^2, which is the same for every entry.
        off = inside[part] @ (table**2).T - 2 * (points[part] * inside[part]) @ table.T
        found[part] = off.argmin(axis=1)
    return found


def _means(points: Array, weights: Array, nearest: Array, table: Array) -> Array:
    """Weighted means of the points (n, vector) of every entry; an entry without any stays."""
    columns = range(table.shape[1])
    entries = len(table)
    sums = [np.bincount(nearest, weights[:, i] * points[:, i], entries) for i in columns]
    masses = [np.bincount(nearest, weights[:, i], entries) for i in columns]
    total, mass = np.stack(sums, axis=1), np.stack(masses, axis=1)
    means: Array = np.where(mass > 0, total / np.where(mass > 0, mass, 1), table)
    return means
