"""What one trial asks for: a compression and a target, in canonical form, with their keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any, Literal

from dse.graph.blocks import ELEMENT, SHARED
from dse.graph.code_book import CodeBooks
from dse.graph.factor import spread
from dse.units import parse_quantity

# Fields that came after studies were stored: left out where they say nothing, so keys stay.
_LATER = (
    "method",
    "ranges",
    "distillation",
    "ranks",
    "factors",
    "pattern",
    "ramp",
    "calibration",
    "code_books",
    "vector",
    "budgets",
    "alignment",
    "whole",
)
# How weights are quantized where nothing else is said; a candidate names what differs.
CALIBRATION: Mapping[str, str] = {
    "scales": "channel",
    "equalization": "none",
    "rounding": "nearest",
    "biases": "rounded",
}


@dataclass(frozen=True)
class Candidate:
    """A compression and a target, in canonical form: what changes nothing is left out.

    `widths` are kept output channels by group, `ranks` those of layers that become two by `factors`
    ('spatial' where that differs from 'channel'), and `kept` kept shares of weights by layer, where
    something is removed; `bits` are the weight widths of every layer, none when the precision (the
    type of the activations) is float32; `method` is 'qat' where quantization is trained, `ranges`
    how activations were calibrated where it was not by min-max, `calibration` what of CALIBRATION
    is otherwise, `distillation` the weight and the temperature of a teacher's loss, `pattern` the
    blocks in which weights go where they are no single elements, `ramp` the fields of a Ramp where
    it is not the usual one; `code_books` are the entries of those layers whose weights are shared,
    `vector` the weights an entry (0 where no layer shares); `target` is 'board/backend/clock'.

    `budgets` are shares of what the unpruned network needs ('memory', 'size', 'macs'), within which
    a training finds the widths, in steps of `alignment`, but for the groups named by `whole`. Its
    `widths` are then what was found, and none before; they are no part of its keys.
    """

    target: str
    widths: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    precision: Literal["int8", "int16", "float32"] = "int8"
    criterion: str = ""
    schedule: str = ""
    method: str = ""
    ranges: str = ""
    distillation: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    factors: str = ""
    pattern: str = ""
    ramp: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, str] = field(default_factory=dict)
    code_books: Mapping[str, int] = field(default_factory=dict)
    vector: int = 0
    budgets: Mapping[str, float] = field(default_factory=dict)
    alignment: int = 0
    whole: tuple[str, ...] = ()

    @cached_property
    def canonical(self) -> str:
        """The same text on every machine."""
        return json.dumps(self._asked, sort_keys=True, separators=(",", ":"))

    @cached_property
    def _asked(self) -> dict[str, Any]:
        """What is asked for, without what a training found."""
        content = self.to_json()
        return content | {"widths": {}} if self.budgets else content

    @property
    def open(self) -> bool:
        """Whether only a training can tell the widths, and with them the costs."""
        return bool(self.budgets) and not self.widths

    @cached_property
    def key(self) -> str:
        """Hash of the whole candidate."""
        return digest(self.canonical)

    @cached_property
    def network_key(self) -> str:
        """Hash of what decides the network; equal for candidates that differ in the target."""
        content = {name: value for name, value in self._asked.items() if name != "target"}
        return digest(json.dumps(content, sort_keys=True))

    @cached_property
    def training_key(self) -> str:
        """Hash of what decides the training; post-training quantization is left out."""
        return self.network_key if self.method == "qat" else self.float_key

    @cached_property
    def float_key(self) -> str:
        """Hash of what decides the float network, from which quantization starts."""
        skipped = {"target", "bits", "precision", "method", "ranges", "calibration"}
        skipped |= {"code_books", "vector"}
        if not self.compressed:  # the baseline has no teacher
            skipped.add("distillation")
        content = {name: v for name, v in self._asked.items() if name not in skipped}
        return digest(json.dumps(content, sort_keys=True))

    @property
    def compressed(self) -> bool:
        """Whether the float network differs from the baseline."""
        return bool(self.widths or self.kept or self.ranks or self.budgets)

    @cached_property
    def layer_bits(self) -> Mapping[str, int]:
        """Weight widths by layer of the network that ships, where low-rank layers are two."""
        return spread(self.bits, self.ranks)

    @cached_property
    def layer_kept(self) -> Mapping[str, float]:
        """Kept shares by layer of the network that ships."""
        return spread(self.kept, self.ranks)

    def books(self, seed: int = 0) -> CodeBooks:
        """The code books of the network that ships; `seed` draws what they start from."""
        return CodeBooks(spread(self.code_books, self.ranks), self.vector or 1, seed)

    @property
    def stored_pattern(self) -> str:
        """The pattern as weights are stored: where they are equalized, or have one scale a tensor,
        those of a block have magnitudes of their own."""
        given = self.calibration
        own = given.get("scales") == "tensor" or given.get("equalization") == "cross-layer"
        pattern = self.pattern or ELEMENT
        return pattern.removesuffix(SHARED) if own else pattern

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the target taken apart."""
        # Not `asdict`, which copies deeply and takes most of the time that a known candidate costs.
        content: dict[str, Any] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if value or name not in _LATER:
                plain = list(value) if isinstance(value, tuple) else value
                content[name] = dict(value) if isinstance(value, dict) else plain
        board, backend, clock_hz = _parts(self.target)
        content["target"] = {"board": board, "backend": backend, "clock_hz": clock_hz}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Candidate:
        """The candidate that `to_json` wrote."""
        target = content["target"]
        text = f"{target['board']}/{target['backend']}/{target['clock_hz'] / 1e6:g}MHz"
        whole = tuple(content.get("whole", ()))
        return cls(**{**content, "target": text, "whole": whole})


_FIELDS = tuple(item.name for item in fields(Candidate))


@lru_cache(maxsize=1024)
def _parts(target: str) -> tuple[str, str, int]:
    """Board, backend and clock in hertz."""
    board, backend, clock = target.split("/")
    return board, backend, round(parse_quantity(clock.replace("MHz", " MHz"), "hertz"))


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def float_baseline(target: str) -> Candidate:
    """The network as it was trained."""
    return Candidate(target, precision="float32")
