"""Knobs and what they mean: sampler values -> Candidate -> graph of shapes, and their keys."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dse.candidate import CALIBRATION, Candidate, digest
from dse.errors import StudyError, nearest
from dse.graph.blocks import ELEMENT
from dse.graph.channels import channel_groups, narrow, with_encodings
from dse.graph.code_book import shrinks
from dse.graph.factor import (
    differs,
    factorizable,
    factorize_shapes,
    matrix_shape,
    saves,
    spread,
)
from dse.graph.ir import Graph

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KnobKind: TypeAlias = Literal[
    "prune",
    "low_rank",
    "factors",
    "sparsity",
    "pattern",
    "code_book",
    "vector",
    "start",
    "end",
    "updates",
    "bits",
    "criterion",
    "schedule",
    "precision",
    "method",
    "ranges",
    "scales",
    "equalization",
    "rounding",
    "biases",
    "distillation",
    "temperature",
    "target",
]
Value: TypeAlias = str | int | float
MAX_KNOWN_SHAPES = 4096


@dataclass(frozen=True)
class Knob:
    """One thing a sampler chooses: its values, and the layers or groups it acts on."""

    name: str
    kind: KnobKind
    choices: tuple[Value, ...]
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.choices:
            raise StudyError(f"knob '{self.name}' has no values to choose from")

    @property
    def ordered(self) -> bool:
        """Whether the values are evenly spaced numbers (a range for the sampler)."""
        if len(self.choices) < 3 or any(isinstance(c, str) for c in self.choices):
            return False
        numbers = [float(c) for c in self.choices]
        step = numbers[1] - numbers[0]
        return step > 0 and all(
            math.isclose(b - a, step, abs_tol=1e-9) for a, b in itertools.pairwise(numbers)
        )

    def distribution(self) -> BaseDistribution:
        """The knob as Optuna knows it."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if not self.ordered:
            return CategoricalDistribution(self.choices)
        low, high = self.choices[0], self.choices[-1]
        step = float(self.choices[1]) - float(low)
        if all(isinstance(choice, int) for choice in self.choices):
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(float(low), float(high), step=round(step, 10))


@dataclass(frozen=True)
class Space:
    """Every candidate of a study: knobs over one network, with widths rounded to `alignment`."""

    graph: Graph
    knobs: tuple[Knob, ...]
    targets: tuple[str, ...]
    alignment: int = 1

    def __post_init__(self) -> None:
        names = [knob.name for knob in self.knobs]
        if len(names) != len(set(names)):
            raise StudyError("two knobs have one name")
        if not self.targets:
            raise StudyError("the space is empty: no target is left")

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The knobs as Optuna knows them, by name."""
        return {knob.name: knob.distribution() for knob in self.knobs}

    @cached_property
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Values by knob."""
        return {knob.name: knob.choices for knob in self.knobs}

    @cached_property
    def size(self) -> int:
        """Settings of the knobs; several may mean one candidate."""
        return math.prod(len(knob.choices) for knob in self.knobs)

    @cached_property
    def channels(self) -> dict[str, int]:
        """Output channels of the whole network by group of tied layers."""
        return {group.name: group.channels for group in channel_groups(self.graph)}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Every layer with weights."""
        return tuple(op.name for op in self.graph.weighted)

    @cached_property
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every layer's weights in the whole network."""
        return {op.name: op.weight.shape for op in self.graph.weighted}

    def int8_baseline(self, target: str) -> Candidate:
        """The unpruned network with every weight in 8 bits."""
        return Candidate(target, bits=dict.fromkeys(self.layers, 8))

    @cached_property
    def _knob(self) -> dict[str, Knob]:
        return {knob.name: knob for knob in self.knobs}

    @cached_property
    def hash(self) -> str:
        """What must not change between a study and its resumption."""
        return digest(json.dumps(self.to_json(), sort_keys=True))

    def to_json(self) -> list[dict[str, Any]]:
        """The knobs, with what they act on."""
        return [asdict(knob) for knob in self.knobs]

    def candidate(self, params: Mapping[str, Any]) -> Candidate:
        """What a setting of the knobs means; equal networks become equal candidates."""
        picked: dict[str, Any] = {
            "criterion": "l2",
            "schedule": "one-shot",
            **USUAL_RAMP,
            "pattern": ELEMENT,
            "vector": 1,
            "factors": "channel",
            "precision": "int8",
            "method": "ptq",
            "ranges": "minmax",
            **CALIBRATION,
            "distillation": 0,
            "temperature": 1,
            "target": self.targets[0],
        }
        widths: dict[str, int] = {}
        kept: dict[str, float] = {}
        ratios: dict[str, float] = {}
        bits = dict.fromkeys(self.layers, 8)
        entries: dict[str, int] = {}
        for name, value in params.items():
            knob = self._knob[name]
            if knob.kind == "prune":
                # Samplers step from the lowest value: 0.1 * 3 is not quite 0.3.
                widths.update(self._widths(knob, round(float(value), 10)))
            elif knob.kind == "low_rank":
                ratios.update(dict.fromkeys(knob.layers, round(float(value), 10)))
            elif knob.kind == "sparsity":
                kept.update({layer: round(1 - float(value), 10) for layer in knob.layers if value})
            elif knob.kind == "code_book":
                entries.update(dict.fromkeys(knob.layers, int(value)))
            elif knob.kind == "bits":
                bits.update(dict.fromkeys(knob.layers, int(value)))
            else:
                picked[knob.kind] = value
        floating = picked["precision"] == "float32"
        learned = picked["method"] == "qat" and not floating
        # Whatever decides nothing is left out: training starts from min-max, and needs a teacher
        # only where something is trained. What is trained finds its own roundings and biases.
        calibrated = not floating and not learned and picked["ranges"] != "minmax"
        ranks, factors = self._ranks(widths, ratios, picked["factors"])
        books: dict[str, int] = {}
        if not floating and any(entries.values()):
            dense = {layer: n for layer, n in entries.items() if n and layer not in kept}
            books = self._books(widths, ranks, factors, dense, int(picked["vector"]))
            bits.update(dict.fromkeys(books, 8))
        taught = picked["distillation"] and (widths or kept or ranks or learned)
        return Candidate(
            target=picked["target"],
            widths=widths,
            kept=kept,
            bits={} if floating else bits,
            precision=picked["precision"],
            criterion=picked["criterion"] if widths else "",
            schedule=picked["schedule"] if widths or kept else "",
            method="qat" if learned else "",
            ranges=picked["ranges"] if calibrated else "",
            calibration={} if floating else _calibration(picked, learned),
            distillation=_teaching(picked) if taught else {},
            ranks=ranks,
            factors=factors,
            pattern=picked["pattern"] if kept and picked["pattern"] != ELEMENT else "",
            ramp=_ramp(picked) if widths or kept else {},
            code_books=books,
            vector=int(picked["vector"]) if books else 0,
        )

    def _widths(self, knob: Knob, ratio: float) -> dict[str, int]:
        found = {}
        for layer in knob.layers:
            channels = self.channels[layer]
            width = aligned_width(channels, ratio, self.alignment)
            if width < channels:
                found[layer] = width
        return found

    def _ranks(
        self, widths: Mapping[str, int], ratios: Mapping[str, float], method: str
    ) -> tuple[dict[str, int], str]:
        """Ranks of the layers, as narrow as they are, that have fewer parameters as two."""
        found: dict[str, int] = {}
        special = False
        if not any(ratios.values()):
            return found, ""
        for op in self._narrowed(widths).weighted:
            ratio = ratios.get(op.name, 0.0)
            if not ratio or not factorizable(op):
                continue
            most = min(matrix_shape(op.weight.shape, method))
            rank = aligned_width(most, ratio, self.alignment)
            if rank < most and saves(op.weight.shape, rank, method):
                found[op.name] = rank
                special |= differs(op, method)
        return found, method if special else ""

    def _books(
        self,
        widths: Mapping[str, int],
        ranks: Mapping[str, int],
        factors: str,
        entries: Mapping[str, int],
        vector: int,
    ) -> dict[str, int]:
        """Entries of the layers, narrow and split as they are, that a code book makes smaller."""
        split = factorize_shapes(self._narrowed(widths), ranks, factors or "channel")
        shapes = {op.name: op.weight.shape for op in split.weighted}
        return {
            layer: n
            for layer, n in entries.items()
            if any(shrinks(shapes[part], n, vector) for part in spread({layer: n}, ranks))
        }

    def _narrowed(self, widths: Mapping[str, int]) -> Graph:
        key = tuple(sorted(widths.items()))
        if key not in self._known_narrowed:
            if len(self._known_narrowed) >= MAX_KNOWN_SHAPES:
                self._known_narrowed.clear()
            self._known_narrowed[key] = narrow(self.graph, widths)
        return self._known_narrowed[key]

    @cached_property
    def _known_narrowed(self) -> dict[tuple[tuple[str, int], ...], Graph]:
        return {}

    def params(self, candidate: Candidate) -> dict[str, Value] | None:
        """A setting that means `candidate` where every layer of a knob agrees, else None.

        Used to tell samplers about the baselines.
        """
        params: dict[str, Value] = {}
        for knob in self.knobs:
            neutral = _NEUTRAL.get(knob.kind)
            value: Value = knob.choices[0] if neutral is None else neutral
            if knob.kind in ("target", "precision"):
                value = str(getattr(candidate, knob.kind))
            elif knob.kind == "bits" and not candidate.bits:
                value = max(knob.choices)  # whatever it says, the weights are floats
            elif knob.kind == "code_book" and not candidate.bits:
                value = knob.choices[0]
            elif knob.kind in _OPTIONAL and value not in knob.choices:
                value = knob.choices[0]  # may decide nothing here, which is seen below
            if value not in knob.choices:
                return None
            params[knob.name] = next(c for c in knob.choices if c == value)
        return params if self.candidate(params) == candidate else None

    def corners(self, target: str) -> Iterator[Candidate]:
        """The narrowest networks on a target, in every precision and every uniform bit width.

        The lowest of each cost is among them, but for mixtures over layers: which one it is
        depends on the cost, as fewer bits and sparse weights are smaller, but slower to unpack.
        """
        kinds: dict[KnobKind, set[Value]] = {}
        for knob in self.knobs:
            kinds.setdefault(knob.kind, set()).update(_EXTREMES[knob.kind](knob.choices))
        kinds["target"] = {target}
        for values in itertools.product(*(sorted(values) for values in kinds.values())):
            picked = dict(zip(kinds, values, strict=True))
            yield self.candidate({knob.name: picked[knob.kind] for knob in self.knobs})

    def draw(self, source: random.Random) -> dict[str, Value]:
        """A uniform random setting."""
        return {knob.name: source.choice(knob.choices) for knob in self.knobs}

    def settings(self) -> Iterator[dict[str, Value]]:
        """Every setting, in order; for spaces small enough to walk."""
        names = [knob.name for knob in self.knobs]
        for values in itertools.product(*(knob.choices for knob in self.knobs)):
            yield dict(zip(names, values, strict=True))

    def shapes(self, candidate: Candidate) -> Graph:
        """The candidate's graph without weights: its exact costs, before any training."""
        known = self._known_shapes.get(candidate.network_key)
        if known is None:
            narrowed = self._narrowed(candidate.widths)
            split = factorize_shapes(narrowed, candidate.ranks, candidate.factors or "channel")
            bits, kept = candidate.layer_bits, candidate.layer_kept
            pattern = candidate.pattern or ELEMENT
            books = candidate.books()
            known = with_encodings(split, bits, kept, candidate.precision, pattern, books)
            if len(self._known_shapes) >= MAX_KNOWN_SHAPES:
                self._known_shapes.clear()
            self._known_shapes[candidate.network_key] = known
        return known

    @cached_property
    def _known_shapes(self) -> dict[str, Graph]:
        return {}


# Kinds of knobs that may decide nothing for a candidate.
_OPTIONAL = ("method", "ranges", "distillation", "factors", "pattern", "vector", *CALIBRATION)
# The Ramp of dse.compress, which is above this floor; a test holds them equal.
USUAL_RAMP: Mapping[str, Value] = {"start": 0.0, "end": 0.5, "updates": 8}
_NEUTRAL: Mapping[str, Value] = {
    "prune": 0,
    "low_rank": 0,
    "factors": "channel",
    "sparsity": 0,
    "pattern": ELEMENT,
    "code_book": 0,
    "vector": 1,
    "bits": 8,
    "method": "ptq",
    "ranges": "minmax",
    **CALIBRATION,
    "distillation": 0,
}
# The choices of a kind of knob between which no cost is lower.
_EXTREMES: Mapping[KnobKind, Callable[[Sequence[Value]], Sequence[Value]]] = {
    "prune": lambda choices: [max(choices)],
    "low_rank": lambda choices: [min(choices), max(choices)],
    "factors": lambda choices: choices,
    "sparsity": lambda choices: [min(choices), max(choices)],
    "pattern": lambda choices: choices,
    # None is quickest and needs no scratch; the smaller the book, the smaller the layer.
    "code_book": lambda choices: sorted(choices, key=float)[:2],
    "vector": lambda choices: choices,
    "start": lambda choices: choices[:1],
    "end": lambda choices: choices[:1],
    "updates": lambda choices: choices[:1],
    "bits": lambda choices: choices,
    "criterion": lambda choices: choices[:1],
    "schedule": lambda choices: choices[:1],
    "precision": lambda choices: choices,
    "method": lambda choices: choices[:1],
    "ranges": lambda choices: choices[:1],
    "scales": lambda choices: choices[:1],
    "equalization": lambda choices: choices[:1],
    "rounding": lambda choices: choices[:1],
    "biases": lambda choices: choices[:1],
    "distillation": lambda choices: choices[:1],
    "temperature": lambda choices: choices[:1],
    "target": lambda choices: choices,
}
_SECTION: Mapping[str, str] = {
    "prune": "pruning",
    "low_rank": "low_rank",
    "sparsity": "sparsity",
    "code_book": "code_books",
    "bits": "quantization",
}


def _calibration(picked: Mapping[str, Any], learned: bool) -> dict[str, str]:
    """What differs from the usual; of what is learned, only the scales stay a choice."""
    kinds = ("scales",) if learned else tuple(CALIBRATION)
    return {kind: picked[kind] for kind in kinds if picked[kind] != CALIBRATION[kind]}


def _teaching(picked: Mapping[str, Any]) -> dict[str, float]:
    return {
        "weight": round(float(picked["distillation"]), 10),
        "temperature": round(float(picked["temperature"]), 10),
    }


def _ramp(picked: Mapping[str, Any]) -> dict[str, float]:
    """What differs from the usual ramp decides only where there is one."""
    found = {
        "start": round(float(picked["start"]), 10),
        "end": round(float(picked["end"]), 10),
        "updates": int(picked["updates"]),
    }
    return found if picked["schedule"] != "one-shot" and found != USUAL_RAMP else {}


def aligned_width(channels: int, ratio: float, alignment: int) -> int:
    """Channels kept of `channels` at a pruning ratio, a multiple of `alignment`, at least one step.

    A layer narrower than one step is left whole: kernels would pad it anyway.
    """
    if ratio <= 0:
        return channels
    steps = max(1, round(channels * (1 - ratio) / alignment))
    return min(channels, steps * alignment)


def layer_knobs(
    kind: Literal["prune", "low_rank", "sparsity", "code_book", "bits"],
    granularity: str,
    choices: Sequence[Value],
    layers: Mapping[str, tuple[int, int]],
    skip: Sequence[str],
) -> list[Knob]:
    """Knobs over `layers` (name -> height and width it works at), one a layer, stage or in all.

    Raises StudyError for a layer to skip that does not exist, and when all are skipped.
    """
    key = f"'space.{_SECTION[kind]}.skip'"
    for name in skip:
        if name not in layers:
            raise StudyError(f"{key} names layer '{name}'; {nearest(name, layers)}")
    chosen = {name: stage for name, stage in layers.items() if name not in skip}
    if not chosen:
        raise StudyError(f"{key} names every layer; leave out the section instead")
    if granularity == "global":
        return [Knob(kind, kind, tuple(choices), tuple(chosen))]
    if granularity == "per-layer":
        return [Knob(f"{kind}.{name}", kind, tuple(choices), (name,)) for name in chosen]
    stages: dict[tuple[int, int], list[str]] = {}
    for name, stage in chosen.items():
        stages.setdefault(stage, []).append(name)
    return [
        Knob(f"{kind}.{height}x{width}", kind, tuple(choices), tuple(names))
        for (height, width), names in stages.items()
    ]
