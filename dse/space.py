"""Knobs and what they mean: sampler values -> Candidate -> graph of shapes, and their keys."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dse.bounded import Bounded
from dse.candidate import CALIBRATION, Candidate, digest
from dse.errors import CompressionError, StudyError
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
from dse.graph.resources import Budgets
from dse.knobs import BUDGET, BUDGETS, RATIO, Knob, KnobKind, Value
from dse.widths import Narrowing, aligned_width

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_KNOWN_SHAPES = 4096


@dataclass(frozen=True)
class Space:
    """Every candidate of a study: knobs over one network, with widths rounded to `alignment`.

    Budgets leave the groups `left_whole` as they are. The widths that trainings found within
    budgets are learned (`learn`), and then are what such a candidate has.
    """

    graph: Graph
    knobs: tuple[Knob, ...]
    targets: tuple[str, ...]
    alignment: int = 1
    left_whole: tuple[str, ...] = ()
    _found: dict[str, Mapping[str, int]] = field(default_factory=dict, compare=False, repr=False)

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
        branches = self._branches.values()
        return sum(math.prod(map(len, branch.values())) for branch in branches)

    @cached_property
    def _branches(self) -> dict[Value, dict[str, tuple[Value, ...]]]:
        """Values by knob for every method of pruning, which asks for knobs of its own."""
        methods = next((knob.choices for knob in self.knobs if knob.kind == "pruning"), (RATIO,))
        return {
            method: {
                knob.name: (method,) if knob.kind == "pruning" else knob.choices
                for knob in self.knobs
                if knob.branch in ("", method)
            }
            for method in methods
        }

    @property
    def conditional(self) -> bool:
        """Whether some knobs are asked only under one method of pruning."""
        return len(self._branches) > 1

    @property
    def budgeted(self) -> bool:
        """Whether some candidates have widths that only a training finds."""
        return any(knob.kind in BUDGETS for knob in self.knobs)

    def asks(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the knobs that count under the method of pruning that `params` hold."""
        first = next(iter(self._branches))
        return tuple(self._branches[params.get("pruning", first)])

    def asked(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `params` that count."""
        names = set(self.asks(params))
        return {name: value for name, value in params.items() if name in names}

    def filled(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A value for every knob: what does not count removes nothing where a value allows it."""
        neutral = {
            knob.name: next(
                (c for c in knob.choices if c == _NEUTRAL.get(knob.kind)), knob.choices[0]
            )
            for knob in self.knobs
        }
        return {**neutral, **params}

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
            "pruning": RATIO,
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
        budgets: dict[str, float] = {}
        for name, value in params.items():
            knob = self._knob[name]
            if knob.kind == "prune":
                # Samplers step from the lowest value: 0.1 * 3 is not quite 0.3.
                widths.update(self._widths(knob, round(float(value), 10)))
            elif knob.kind in BUDGETS:
                budgets.update({knob.kind: round(float(value), 10)} if value < 1 else {})
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
        if picked["pruning"] == BUDGET:
            widths = {}
        else:
            budgets = {}
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
        taught = picked["distillation"] and (widths or kept or ranks or budgets or learned)
        found = Candidate(
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
            budgets=budgets,
            alignment=self.alignment if budgets else 0,
            whole=self.left_whole if budgets else (),
        )
        return self.known(found)

    # --- what budgets leave ---------------------------------------------------------------------

    def known(self, candidate: Candidate) -> Candidate:
        """The candidate with the widths that a training found for it, where one has."""
        widths = self._found.get(candidate.float_key) if candidate.open else None
        return candidate if widths is None else replace(candidate, widths=widths)

    def learn(self, candidate: Candidate) -> bool:
        """Remember the widths that training found; whether that is new."""
        found = candidate.budgets and candidate.widths
        if not found or candidate.float_key in self._found:
            return False
        self._found[candidate.float_key] = candidate.widths
        return True

    def apart(self) -> Space:
        """The same space, which learns widths by itself: they depend on a study's seed."""
        return replace(self, _found={})

    def trained(self, candidate: Candidate, graph: Graph) -> Candidate:
        """An open candidate with the widths of its network."""
        made = {op.name: op.weight.shape[0] for op in graph.weighted}
        found = {name: made[name] for name in self.channels}
        return replace(candidate, widths=self._narrowing(candidate).removed(found))

    def narrowest(self, candidate: Candidate) -> Candidate:
        """An open candidate with the least widths that a training could find."""
        if not candidate.open:
            return candidate
        narrowing = self._narrowing(candidate)
        return replace(candidate, widths=narrowing.removed(narrowing.narrowest))

    def expected(self, candidate: Candidate) -> Candidate:
        """An open candidate with predicted widths: the best within its budgets if all groups
        mattered alike. A prediction, for samplers only."""
        if not candidate.open:
            return candidate
        key = candidate.alignment, candidate.whole, *sorted(candidate.budgets.items())
        if key not in self._known_expected:
            narrowing = self._narrowing(candidate)
            budgets = Budgets.of(self.graph, candidate.budgets)
            self._known_expected[key] = narrowing.removed(narrowing.expected(budgets))
        return replace(candidate, widths=self._known_expected[key])

    @cached_property
    def _known_expected(self) -> dict[tuple[Any, ...], dict[str, int]]:
        return {}

    def _narrowing(self, candidate: Candidate) -> Narrowing:
        """By what the candidate says, which may come from a study with another alignment."""
        key = candidate.alignment, candidate.whole
        return self._narrowings.setdefault(key, Narrowing(self.graph, *key))

    @cached_property
    def _narrowings(self) -> dict[tuple[int, tuple[str, ...]], Narrowing]:
        return {}

    # --- what ratios leave ----------------------------------------------------------------------

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
            self._known_narrowed[key] = narrow(self.graph, widths)
        return self._known_narrowed[key]

    @cached_property
    def _known_narrowed(self) -> Bounded[tuple[tuple[str, int], ...], Graph]:
        return Bounded(MAX_KNOWN_SHAPES)

    def params(self, candidate: Candidate) -> dict[str, Value] | None:
        """A setting that means `candidate` where every layer of a knob agrees, else None.

        Used to tell samplers about the baselines.
        """
        settings = (self._setting(candidate, branch) for branch in self._branches.values())
        return next((p for p in settings if p and self.candidate(p) == candidate), None)

    def _setting(
        self, candidate: Candidate, branch: Mapping[str, Sequence[Value]]
    ) -> dict[str, Value]:
        """What would mean `candidate` if it changes nothing else; empty without such a choice."""
        params: dict[str, Value] = {}
        for name, choices in branch.items():
            kind = self._knob[name].kind
            value: Value = _NEUTRAL.get(kind, choices[0])
            if kind in ("target", "precision"):
                value = str(getattr(candidate, kind))
            elif kind == "bits" and not candidate.bits:
                value = max(choices)  # whatever it says, the weights are floats
            elif kind == "code_book" and not candidate.bits:
                value = choices[0]
            elif kind in _OPTIONAL and value not in choices:
                value = choices[0]  # may decide nothing here, which is seen below
            if value not in choices:
                return {}
            params[name] = next(c for c in choices if c == value)
        return params

    def corners(self, target: str) -> Iterator[Candidate]:
        """The narrowest networks on a target, in every precision and every uniform bit width.

        The lowest of each cost is among them, but for mixtures over layers: which one it is
        depends on the cost, as fewer bits and sparse weights are smaller, but slower to unpack.
        Widths that trainings found are left out, so that a resumed study has the corners it began
        with.
        """
        kinds: dict[KnobKind, set[Value]] = {}
        for knob in self.knobs:
            kinds.setdefault(knob.kind, set()).update(_EXTREMES[knob.kind](knob.choices))
        kinds["target"] = {target}
        for values in itertools.product(*(sorted(values) for values in kinds.values())):
            picked = dict(zip(kinds, values, strict=True))
            found = self.candidate({knob.name: picked[knob.kind] for knob in self.knobs})
            yield replace(found, widths={}) if found.budgets else found

    def draw(self, source: random.Random) -> dict[str, Value]:
        """A uniform random setting."""
        return self.asked({knob.name: source.choice(knob.choices) for knob in self.knobs})

    def settings(self) -> Iterator[dict[str, Value]]:
        """Every setting, in order; for spaces small enough to walk."""
        for branch in self._branches.values():
            for values in itertools.product(*branch.values()):
                yield dict(zip(branch, values, strict=True))

    def shapes(self, candidate: Candidate) -> Graph:
        """The candidate's graph without weights: its exact costs, before any training.

        Raises CompressionError for an open candidate, whose widths nobody knows.
        """
        if candidate.open:
            raise CompressionError("widths within budgets are not known before a training")
        key = candidate.network_key, tuple(candidate.widths.items()) if candidate.budgets else ()
        known = self._known_shapes.get(key)
        if known is None:
            narrowed = self._narrowed(candidate.widths)
            split = factorize_shapes(narrowed, candidate.ranks, candidate.factors or "channel")
            bits, kept = candidate.layer_bits, candidate.layer_kept
            pattern, books = candidate.stored_pattern, candidate.books()
            known = with_encodings(split, bits, kept, candidate.precision, pattern, books)
            self._known_shapes[key] = known
        return known

    @cached_property
    def _known_shapes(self) -> Bounded[tuple[str, tuple[tuple[str, int], ...]], Graph]:
        return Bounded(MAX_KNOWN_SHAPES)


# Kinds of knobs that may decide nothing for a candidate.
_OPTIONAL = ("method", "ranges", "distillation", "factors", "pattern", "vector", *CALIBRATION)
# The Ramp of dse.compress, which is above this floor; a test holds them equal.
USUAL_RAMP: Mapping[str, Value] = {"start": 0.0, "end": 0.5, "updates": 8}
_NEUTRAL: Mapping[str, Value] = {
    "prune": 0,
    **dict.fromkeys(BUDGETS, 1),
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
    "pruning": lambda choices: choices,
    **dict.fromkeys(BUDGETS, lambda choices: [min(choices)]),
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
