"""Which network to train next: exact costs, a model of the error, expected hypervolume gained."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from dse.errors import StudyError
from dse.greybox.costs import CostBox, CostTable, Region
from dse.greybox.features import FeatureMap, Features
from dse.greybox.history import History
from dse.greybox.improvement import QUANTILES, Attained, Bits, CostPoints
from dse.greybox.knobs import Floats, Knobs
from dse.greybox.memo import RowMemo
from dse.greybox.proposals import Proposals
from dse.greybox.surrogate import ErrorModel, ErrorScale

POINTS, LATE_POINTS, LATE = 2048, 8192, 64
MAX_WALK = 50_000
_WALKED = 400  # networks costed at once where all are walked
_SHARES = (0.4, 0.45, 0.15)  # cost-spread, mutations, crossovers
# The best are mutated again and again: with many knobs, the way to the optimum has many steps.
_REFINED, _ROUNDS = 12, 5
_CHILDREN = 0.04  # of the pool, by refined network and round
_RANKED = 8
# The process is too sure of itself far from what was trained: its 90 % intervals held half to four
# fifths of the true errors, and the best networks of all lay two deviations below its mean.
# Where a limit makes all the gain a matter of chance, so much doubt would only bet on luck.
_DOUBT, _DOUBT_OF_LIMITS = 1.6, 1.3
_DRAWS = 200
_WIDER = 4000


@dataclass(frozen=True)
class Proposal:
    """A network to train and the deployment that gains most from it, with what is expected."""

    network: Floats
    deployment: int
    gain: float = math.nan
    error: float = math.nan


class Search:
    """Proposes networks for one space; everything it says follows from the arguments.

    `features` maps parameters to numbers (default: the knobs' own); `region` bounds the known
    objectives and `worst_error` the learned one (None: the worst that was found). With a `limit`,
    an error above it is worth nothing, whatever it gains up to `worst_error`. `candidates` are
    drawn a proposal, and more than twice as many scored in all.
    """

    def __init__(
        self,
        knobs: Knobs,
        table: CostTable,
        region: Region,
        scale: ErrorScale,
        worst_error: float | None = None,
        features: Features | None = None,
        startup: int = 3,
        seed: int = 0,
        candidates: int = 400,
        limit: float | None = None,
    ) -> None:
        self.knobs, self.table = knobs, table
        self.limit = limit
        self.scale = replace(scale, worst=worst_error if limit is None else limit)
        self.region, self.worst_error, self.startup = region, worst_error, startup
        self.candidates = candidates
        self._user_features, self._seed = features, seed
        self._points: dict[int, tuple[CostPoints, RowMemo]] = {}

    @cached_property
    def proposals(self) -> Proposals:
        """Draws, mutations and crossovers."""
        return Proposals(self.knobs, self.table, self._seed)

    @cached_property
    def _probes(self) -> Floats:
        """The ends of the space and draws between them, the same for the whole study."""
        source = np.random.default_rng(np.random.SeedSequence((self._seed, 0xB0C5)))
        return np.vstack([self.proposals.ends(), self.proposals.spread(source, 126)])

    @cached_property
    def box(self) -> CostBox:
        """Where designs count."""
        known = any(pair is None for pair in self.region)
        costs = self.table.of(self._probes if known else self._probes[:0])
        return CostBox.around(costs, self.region, self.table.signs)

    @cached_property
    def features(self) -> FeatureMap:
        """Rows to numbers on which the error depends."""
        return FeatureMap(self.knobs, self._user_features, self._probes)

    def costs(self, rows: Floats) -> Floats:
        """Normalised costs (n, deployments, k); nan where a design does not count."""
        return self.box.normalise(self.table.of(rows))

    def points(self, trainings: int) -> CostPoints:
        """The cost points: more of them when the front is fine."""
        return self._points_of(trainings)[0]

    def served(self, rows: Floats, trainings: int) -> Bits:
        """The points that each network serves, in bits (n, bytes)."""
        points, memo = self._points_of(trainings)
        found = memo(rows) if len(rows) else points.served(self.costs(rows))
        return np.asarray(found, dtype=np.uint8)

    def _points_of(self, trainings: int) -> tuple[CostPoints, RowMemo]:
        count = POINTS if trainings < LATE else LATE_POINTS
        if count not in self._points:
            points = CostPoints(self.table.shape[1], count, self._seed)
            memo = RowMemo(lambda rows: points.served(self.costs(rows)))
            self._points = {count: (points, memo)}
        return self._points[count]

    # --- proposing ----------------------------------------------------------------------------

    def propose(self, history: History, number: int) -> list[Proposal]:
        """Networks worth training, best first; `number` decides the random draws.

        Raises StudyError when no feasible network is left to train.
        """
        source = np.random.default_rng(np.random.SeedSequence((self._seed, number)))
        begun = len(history.trained) + len(history.running)
        with _one_thread():
            attained = Attained(self.points(begun), self._reference(history))
            if begun < self.startup or len(history.trained) < 2:
                return self._first(history, source, attained)
            return _Scorer(self, history, attained).best(source)

    def _reference(self, history: History) -> float:
        """The error from which on a design does not count."""
        if self.worst_error is not None:
            return self.worst_error
        if not len(history.errors):
            return 1.0
        worst, best = float(history.errors.max()), float(history.errors.min())
        return worst + 0.1 * (worst - best or abs(worst) or 1.0)

    def counted(self, errors: Floats, attained: Attained) -> Floats:
        """The errors; the reference, which gains nothing, for those above the limit."""
        return (
            errors
            if self.limit is None
            else np.where(errors > self.limit, attained.reference, errors)
        )

    def _first(
        self, history: History, source: np.random.Generator, attained: Attained
    ) -> list[Proposal]:
        """The parent, the smallest network, then those farthest from what is known."""
        if history.known < 2:
            ends = self.feasible(history.new(self.proposals.ends()[history.known :]))
            if len(ends):
                return self._deployed(ends[:1], attained)
        rows = self.feasible(history.new(self.proposals.spread(source, _DRAWS)))
        if not len(rows):
            rows = self.anything(history, source)
        known = np.vstack([history.trained, history.running])
        if len(known):
            ours, theirs = self.features(rows), self.features(known)
            away = np.linalg.norm(ours[:, None] - theirs[None], axis=2).min(axis=1)
            rows = rows[np.argsort(-away, kind="stable")]
        return self._deployed(rows[:_RANKED], attained)

    def _deployed(self, rows: Floats, attained: Attained) -> list[Proposal]:
        """Each network with the deployment that serves most while nothing is known of its error."""
        best = np.full((len(rows), 1), attained.error.min() - 1.0)
        chosen = self.deployments(rows, best, attained)
        return [Proposal(row, int(d)) for row, d in zip(rows, chosen, strict=True)]

    def deployments(self, rows: Floats, errors: Floats, attained: Attained) -> Any:
        """The deployment of each network that gains most by itself, (n,)."""
        costs = self.costs(rows)
        count = costs.shape[1]
        served = attained.points.served(costs.reshape(-1, 1, costs.shape[2]))
        gains = attained.improvement(np.repeat(errors, count, axis=0), served)
        able = np.isfinite(costs).all(axis=2)
        return np.argmax(np.where(able, gains.reshape(-1, count), -1.0), axis=1)

    def feasible(self, rows: Floats) -> Floats:
        """Rows with a deployment that counts."""
        able = np.asarray(np.isfinite(self.costs(rows)).all(axis=2))
        return rows[able.any(axis=1)]

    def anything(self, history: History, source: np.random.Generator) -> Floats:
        """Any networks that are new and feasible; StudyError when there are none."""
        if self.knobs.size <= MAX_WALK:
            rows = np.array(list(self.knobs.settings())).reshape(-1, len(self.knobs))
            rows = rows[source.permutation(len(rows))]
        else:
            draws = (self.proposals.uniform, self.proposals.spread)
            rows = np.vstack([draw(source, _WIDER) for draw in draws])
        new, tried = history.new(rows), 0
        for start in range(0, len(new), _WALKED):
            found = self.feasible(new[start : start + _WALKED])
            tried += min(_WALKED, len(new) - start)
            if len(found):
                return found
        raise StudyError(self._nothing_left(history, tried))

    def _nothing_left(self, history: History, tried: int) -> str:
        whole = self.knobs.size <= MAX_WALK
        if not history.known:
            share = f"all {tried:,}" if whole else f"{tried:,} drawn"
            return (
                f"no design is feasible: {share} networks miss the limits on every deployment; "
                "raise a limit, allow smaller networks or add a deployment"
            )
        share = f"the other {tried:,} networks of the space are" if tried else "there is no other"
        rest = f"{share} infeasible" if tried else share
        if not whole:
            rest = f"none of {tried:,} further draws is new and feasible"
        return (
            f"nothing is left to train: {history.known:,} networks are known and {rest}; "
            "the study is complete, or give finer knobs"
        )

    def exhausted(self, history: History) -> bool:
        """Whether a space small enough to walk holds no feasible network that is not known."""
        if self.knobs.size > MAX_WALK or history.known * self.knobs.size == 0:
            return False
        if history.key is None and history.known < self.knobs.size / 64:
            return False
        try:
            self.anything(history, np.random.default_rng(0))
        except StudyError:
            return True
        return False


@cache
def _libraries() -> Any:
    return ThreadpoolController()


_PROPOSING = threading.RLock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Linear algebra on one thread.

    The matrices are small, and threads that wait for cores on which networks are trained made a
    proposal five times slower. The setting is the process's: who proposes meanwhile has to wait, or
    would put back the one thread as what was there before.
    """
    with _PROPOSING, _libraries().limit(limits=1, user_api="blas"):
        yield


class _Scorer:
    """Expected improvement over what is known now."""

    def __init__(self, search: Search, history: History, attained: Attained) -> None:
        self.search, self.history, self.attained = search, history, attained
        trained = search.features(history.trained)
        self.model = ErrorModel(trained, history.errors, search.scale)
        # Not what was measured: the best of many noisy results is too good to be true.
        errors = self.model.errors()
        if len(history.running):
            believed = self.model.believe(search.features(history.running))
            errors = np.concatenate([errors, believed])
        errors = search.counted(errors, attained)
        self.rows = np.vstack([history.trained, history.running])
        complete = np.nan_to_num(self.rows)  # what was not asked for does not matter for the costs
        served = search.served(complete, len(self.rows))
        attained.take(errors, served, np.arange(len(errors)))

    def best(self, source: np.random.Generator) -> list[Proposal]:
        """The best of a pool and of some rounds of mutations of its best."""
        rows = self._pool(source)
        gain = self._gain(rows)
        for _ in range(_ROUNDS):
            parents = rows[np.argsort(-gain, kind="stable")[:_REFINED]]
            count = round(_CHILDREN * self.search.candidates) * len(parents)
            children = self.search.proposals.mutated(source, parents, count)
            children = self.search.feasible(self.history.new(children))
            rows, gain = np.vstack([rows, children]), np.append(gain, self._gain(children))
        order = np.argsort(-gain, kind="stable")
        _, first = np.unique(rows[order], axis=0, return_index=True)
        return self._proposals(rows[order[np.sort(first)[:_RANKED]]], gain[order[0]])

    def _pool(self, source: np.random.Generator) -> Floats:
        """Candidates that are new and feasible."""
        proposals, new = self.search.proposals, self.history.new
        front = self._parents()
        counts = [round(self.search.candidates * share) for share in _SHARES]
        rows = [
            proposals.spread(source, counts[0]),
            proposals.mutated(source, front, counts[1]),
            proposals.crossed(source, front, counts[2]),
        ]
        found = self.search.feasible(new(np.vstack(rows)))
        if len(found) < _REFINED:
            found = np.vstack([found, self.search.anything(self.history, source)])
        return found

    def _parents(self) -> Floats:
        """Networks on the front, all when none is; what was not asked for is drawn."""
        found = self.rows[self.attained.front] if len(self.attained.front) else self.rows
        source = np.random.default_rng(len(self.rows))
        return np.where(np.isnan(found), self.search.proposals.uniform(source, len(found)), found)

    def _errors(self, rows: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean and deviation on the model's scale, and equally probable errors (n, samples)."""
        mean, deviation = self.model.predict(self.search.features(rows))
        doubt = _DOUBT if self.search.limit is None else _DOUBT_OF_LIMITS
        values = mean[:, None] + doubt * deviation[:, None] * QUANTILES
        errors = self.search.counted(self.search.scale.back(values), self.attained)
        return mean, deviation, errors

    def _gain(self, rows: Floats) -> Floats:
        if not len(rows):
            return np.zeros(0)
        _, deviation, errors = self._errors(rows)
        served = self.attained.points.served(self.search.costs(rows))
        gain = self.attained.improvement(errors, served)
        # Where nothing is gained any more, the most uncertain network is worth a look.
        return np.asarray(gain + 1e-12 * deviation)

    def _proposals(self, rows: Floats, gain: float) -> list[Proposal]:
        mean, _, errors = self._errors(rows)
        chosen: Sequence[int] = self.search.deployments(rows, errors, self.attained)
        expected = self.search.scale.back(mean)
        return [
            Proposal(row, int(d), gain, float(error))
            for row, d, error in zip(rows, chosen, expected, strict=True)
        ]
