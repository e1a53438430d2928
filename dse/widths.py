"""Channels that groups of tied layers keep: in steps of an alignment, and within budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dse.errors import CompressionError
from dse.graph.allocate import best_shares
from dse.graph.channels import ChannelGroup, channel_groups, narrow, with_encodings
from dse.graph.ir import Graph
from dse.graph.resources import Budgets, FractionalNeeds, Resources, needs

# Halvings of the step by which rounded widths are fitted into budgets.
_FITTINGS = 8


def aligned_width(channels: int, ratio: float, alignment: int) -> int:
    """Channels kept of `channels` at a pruning ratio, a multiple of `alignment`, at least one step.

    A layer narrower than one step is left whole: kernels would pad it anyway.
    """
    if ratio <= 0:
        return channels
    steps = max(1, round(channels * (1 - ratio) / alignment))
    return min(channels, steps * alignment)


@dataclass(frozen=True, eq=False)
class Narrowing:
    """The widths that a graph may have: whole, or multiples of `alignment`.

    Widths are kept channels of every group by its name; the groups `kept` keep all of theirs.
    """

    graph: Graph
    alignment: int = 1
    kept: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Groups of tied layers, in the order of every array of shares."""
        return channel_groups(self.graph)

    @cached_property
    def whole(self) -> dict[str, int]:
        """The widest: nothing is removed."""
        return {group.name: group.channels for group in self.groups}

    @cached_property
    def narrowest(self) -> dict[str, int]:
        """One step in every group that may become narrower."""
        return {
            name: channels if name in self.kept else aligned_width(channels, 1.0, self.alignment)
            for name, channels in self.whole.items()
        }

    @cached_property
    def fractional(self) -> FractionalNeeds:
        """The needs as functions of shares."""
        return FractionalNeeds(self.graph, self.groups)

    def removed(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The widths of those groups alone that lose channels."""
        return {name: width for name, width in widths.items() if width < self.whole[name]}

    def needs(self, widths: Mapping[str, int]) -> Resources:
        """What the int8 network of these widths needs, exactly."""
        return needs(with_encodings(narrow(self.graph, self.removed(widths)), {}, {}))

    def met(self, widths: Mapping[str, int], limits: Mapping[str, float]) -> bool:
        """Whether nothing is over its limit, by the fields of Resources."""
        found = self.needs(widths)
        return all(getattr(found, name) <= limit for name, limit in limits.items())

    def check_possible(self, budgets: Budgets) -> None:
        """Raise CompressionError when the narrowest network is over a budget."""
        found = self.needs(self.narrowest)
        for name, limit in budgets.limits.items():
            if getattr(found, name) > limit:
                raise CompressionError(
                    f"budget {name} of {limit:,} cannot be met: the narrowest network needs "
                    f"{getattr(found, name):,}"
                )

    def shares(
        self,
        limits: Mapping[str, float],
        weights: Mapping[str, float],
        widest: Mapping[str, int],
    ) -> dict[str, float]:
        """Kept shares that lose least within limits, no group wider than `widest`."""
        names = list(self.whole)
        low = np.array([self.narrowest[name] / self.whole[name] for name in names])
        high = np.array([widest[name] / self.whole[name] for name in names])
        chosen = np.array([weights[name] for name in names])
        found = best_shares(self.fractional, limits, chosen, low, high)
        return dict(zip(names, map(float, found), strict=True))

    def rounded(self, shares: Mapping[str, float]) -> dict[str, int]:
        """The widest widths that are at most `shares`, but for the narrowest."""
        return {name: self._rounded(name, share) for name, share in shares.items()}

    def _rounded(self, name: str, share: float) -> int:
        whole = self.whole[name]
        if share >= 1 - 1e-6:
            return whole
        steps = math.floor(whole * share / self.alignment + 1e-6)
        return max(self.narrowest[name], steps * self.alignment)

    def expected(self, budgets: Budgets) -> dict[str, int]:
        """Widths within the budgets if all groups mattered alike: a prediction of what is found.

        What training measures moves them. The narrowest where nothing meets the budgets.
        """
        shares = self.shares(budgets.limits, dict.fromkeys(self.whole, 1.0), self.whole)
        low, high = 0.0, 2.0
        for _ in range(_FITTINGS):
            middle = (low + high) / 2
            fits = budgets.met(self.needs(self._scaled(shares, middle)))
            low, high = (middle, high) if fits else (low, middle)
        return self._scaled(shares, low)

    def _scaled(self, shares: Mapping[str, float], scale: float) -> dict[str, int]:
        return self.rounded({name: min(1.0, share * scale) for name, share in shares.items()})
