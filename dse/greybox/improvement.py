"""Expected hypervolume improvement in closed form, when every cost is known beforehand.

The hypervolume below a reference error is the mean over cost points u, spread evenly over the box
of costs, of (reference - E(u))+, where E(u) is the smallest error among the designs whose costs are
all at most u. A training changes E(u) where one of its deployments costs at most u - the points it
*serves* - so its expected gain is the mean over these points of the ordinary expected improvement
(E(u) - error)+ (Jones, Schonlau & Welch 1998). No decomposition into boxes, any number of
objectives, and all deployments of one training counted together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import qmc

from dse.greybox.knobs import Floats

Bits = npt.NDArray[np.uint8]
# The normal distribution by the middles of this many equally probable parts.
QUANTILES = ndtri((np.arange(12) + 0.5) / 12)


class CostPoints:
    """Sobol points in the unit box of normalised costs, and which of them a design serves."""

    def __init__(self, costs: int, count: int = 2048, seed: int = 0) -> None:
        if costs:
            # A power of two keeps the sequence balanced.
            sobol = qmc.Sobol(costs, scramble=True, rng=np.random.default_rng(seed))
            self.points = sobol.random_base2(max(0, (count - 1).bit_length()))
        else:
            self.points = np.zeros((1, 0))
        order = np.argsort(self.points, axis=0)
        self._sorted = np.take_along_axis(self.points, order, axis=0)
        self._above = [_suffixes(order[:, axis]) for axis in range(costs)]

    def __len__(self) -> int:
        return len(self.points)

    def served(self, costs: Floats) -> Bits:
        """Points served by each network: normalised costs (n, deployments, k) -> bits (n, bytes).

        A deployment with a cost that is not finite serves none.
        """
        able = np.asarray(np.isfinite(costs).all(axis=2))
        found = np.where(able[..., None], np.uint8(255), np.uint8(0))
        found = np.broadcast_to(found, (*able.shape, (len(self) + 7) // 8))
        for axis, above in enumerate(self._above):
            rank = np.searchsorted(self._sorted[:, axis], np.nan_to_num(costs[..., axis], nan=2.0))
            found = found & above[rank]
        union: Bits = np.bitwise_or.reduce(found, axis=1)
        return union

    def mask(self, bits: Bits) -> npt.NDArray[np.bool_]:
        """Packed bits (n, bytes) as booleans (n, points)."""
        return np.unpackbits(bits, axis=1, count=len(self)).view(np.bool_)


def _suffixes(order: npt.NDArray[np.intp]) -> Bits:
    """Row r: the points that are not among the first r in order, packed."""
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    found = np.zeros((len(order) + 1, (len(order) + 7) // 8), dtype=np.uint8)
    for start in range(0, len(found), 512):  # in blocks: unpacked, 8,192 points take 64 MiB
        rows = np.arange(start, min(start + 512, len(found)))
        found[rows] = np.packbits(rank[None, :] >= rows[:, None], axis=1)
    return found


class Attained:
    """E(u): the smallest error found so far at every cost point, at most the reference."""

    def __init__(self, points: CostPoints, reference: float) -> None:
        self.points, self.reference = points, reference
        self.error: Floats = np.full(len(points), reference)
        self.owner = np.full(len(points), -1)
        self._order: npt.NDArray[np.intp] | None = None

    def add(self, error: float, served: Bits, owner: int) -> None:
        """Take in a trained network; `served` (bytes,) as `CostPoints.served` gives them."""
        self.take(np.array([error]), served[None], np.array([owner]))

    def take(self, errors: Floats, served: Bits, owners: npt.NDArray[np.intp]) -> None:
        """Take in trained networks: (n,), (n, bytes), (n,); of equal errors the first one counts.

        In order of their errors, a network is the best where none before it serves.
        """
        left = np.full(served.shape[1], 255, dtype=np.uint8)
        for index in np.argsort(errors, kind="stable"):
            first = served[index] & left
            if first.any():
                left ^= first
                mask = self.points.mask(first[None])[0] & (errors[index] < self.error)
                self.error[mask], self.owner[mask] = errors[index], owners[index]
        self._order = None

    @property
    def hypervolume(self) -> float:
        """Mean of (reference - E(u)) over the points, in units of the error."""
        return float(np.mean(self.reference - self.error))

    @property
    def front(self) -> npt.NDArray[np.int_]:
        """Networks that are best at some point."""
        found = np.unique(self.owner)
        return np.asarray(found[found >= 0])

    def improvement(self, errors: Floats, served: Bits) -> Floats:
        """Expected gain of hypervolume (n,) from equally probable errors (n, samples).

        `served` (n, bytes) is what `CostPoints.served` gives. In order of E(u), the points that an
        error improves are a tail: two running sums over the few distinct values of E(u) hold the
        sum of (E(u) - error)+ over the served points, for every sample at once.
        """
        if self._order is None:
            self._order = np.argsort(self.error)
        order = self._order
        level, start = np.unique(self.error[order], return_index=True)
        mask = np.take(self.points.mask(served).view(np.uint8), order, axis=1)
        count = np.add.reduceat(mask, start, axis=1, dtype=np.int32).astype(np.float64)
        above = np.searchsorted(level, errors)
        reached = np.take_along_axis(_tails(count), above, 1)
        gain = np.take_along_axis(_tails(count * level), above, 1) - errors * reached
        return np.asarray(gain.mean(axis=1) / len(order), dtype=np.float64)


def _tails(values: Floats) -> Floats:
    """Sums from each column to the last, and a last column of zeros."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values[:, ::-1], axis=1, out=sums[:, -2::-1])
    return sums
