"""`GreyBoxSampler`: a sampler for Optuna studies in which only one objective must be learned."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dse.errors import StudyError
from dse.greybox.costs import (
    BatchCosts,
    CostTable,
    DesignCosts,
    Region,
    deployments_of,
)
from dse.greybox.features import Features
from dse.greybox.history import CLAIM, NetworkKey, TrialReader
from dse.greybox.knobs import Knobs
from dse.greybox.search import Proposal, Search
from dse.greybox.surrogate import ErrorScale, Scale
from dse.pareto import non_dominated

_ATTEMPTS = 8


@dataclass(frozen=True)
class _Space:
    """The search over a space, and how stored trials tell of it; both remember what they asked."""

    search: Search
    reader: TrialReader


@dataclass(frozen=True)
class Design:
    """A network on one of its deployments: its objectives, and the trial that trained it."""

    number: int
    params: Mapping[str, Any]
    values: tuple[float, ...]


class GreyBoxSampler(BaseSampler):
    """Finds a front with few trainings, where every objective but one is known beforehand.

    `costs` gives the known objectives of a design (all parameters in), in the study's order
    without the learned one, or None for a design that must not be built. With `vectorized` it takes
    a list of networks (n) and one of deployments (d) and returns (n, d, k) numbers, nan where not
    feasible. It must be cheap: it is asked for a few hundred networks a trial.

    `learned` is the index of the objective to learn, an accuracy or error of 0..1 as the study's
    direction says (`scale='logit'`), or another quantity ('log', 'linear'). `samples` is the
    number of test samples behind it: the binomial noise of the estimate is then taken into account.

    `deployment` names the parameters that do not change the training: one training then counts for
    all their values, and `front` lists what came of it. They need a list of values.

    `distributions` is the whole space; without it, the space is what the stored trials asked for,
    and the first trial is drawn at random. Parameters may be conditional: what a design does not
    ask for is ignored. `features` maps the network's parameters to numbers on which the error
    depends smoothly, in groups of what is alike, such as the kept share of every layer: a group's
    average is a feature of its own (default: every knob's position, categories one-hot, knobs
    grouped by what comes before the first dot or digit of their names). `network` maps the
    parameters to a key; equal keys mean one training (default: the parameters).

    `region` gives (best, worst) for each objective in the study's order, None for what should be
    found out: a design that is worse than the worst anywhere does not count, and what its costs
    alone put there is never trained. `limit` is a constraint on the learned objective: what is
    worse does not count either, but what is better gains all that lies between it and the region's
    worst.

    What is proposed follows from `seed`, the number of the trial and the stored trials. So any
    number of workers may share a study, and a study that was stopped goes on as if it had not been;
    running trials are believed at their predicted means. Failed trials are not repeated. Raises
    StudyError when nothing feasible is left to train; under `Study.optimize`, the study stops by
    itself before. `number` replaces the trial's own number where trials are not numbered alike
    after a restart.
    """

    def __init__(
        self,
        costs: DesignCosts | BatchCosts,
        *,
        learned: int = 0,
        deployment: Collection[str] = (),
        distributions: Mapping[str, BaseDistribution] | None = None,
        vectorized: bool = False,
        features: Features | None = None,
        network: NetworkKey | None = None,
        region: Region | None = None,
        limit: float | None = None,
        scale: Scale = "logit",
        samples: int | None = None,
        startup: int = 3,
        candidates: int = 400,
        seed: int = 0,
        number: int | None = None,
    ) -> None:
        if startup < 2:
            raise StudyError(f"startup is {startup}; allowed: at least 2 trainings")
        if candidates < 20:
            raise StudyError(f"candidates is {candidates}; allowed: at least 20 a proposal")
        if samples is not None and samples < 1:
            raise StudyError(f"samples is {samples}; allowed: at least 1 test sample, or None")
        if limit is not None and scale == "logit" and not 0 <= limit <= 1:
            raise StudyError(f"limit is {limit:g}; allowed: 0 to 1, or scale='linear'")
        self._costs, self._vectorized = costs, vectorized
        self._learned, self._deployment = learned, frozenset(deployment)
        self._distributions = None if distributions is None else dict(distributions)
        self._features, self._network = features, network
        self._region, self._limit, self._scale = region, limit, ErrorScale(scale, samples)
        self._startup, self._candidates, self._seed = startup, candidates, seed
        self.number = number
        self._spaces: dict[tuple[Any, ...], _Space] = {}

    def reseed_rng(self) -> None:
        """Nothing to do: draws depend on the trial's number, so workers differ by themselves."""

    # --- Optuna's side ------------------------------------------------------------------------

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every parameter, conditional ones too."""
        if self._distributions is not None:
            return dict(self._distributions)
        return _union(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the next design."""
        if not search_space:
            return {}
        space = self._space(study, search_space)
        search = space.search
        number = trial.number if self.number is None else self.number
        for attempt in range(_ATTEMPTS):
            trials = study.get_trials(deepcopy=False)
            others = [found for found in trials if found.number != trial.number]
            # Whoever meets a rival takes another than the best, each its own.
            proposals = search.propose(space.reader.history(others), number)
            chosen = proposals[(attempt * (number + 1)) % len(proposals)]
            self._claim(study, trial, search, chosen)
            known = {found.number for found in trials if found.state.is_finished()}
            known.add(trial.number)
            rivals = [t for t in study.get_trials(deepcopy=False) if t.number not in known]
            if not space.reader.history(rivals).knows(chosen.network):
                break
        return {
            **search.knobs.params(chosen.network),
            **search.table.deployments[chosen.deployment],
        }

    def _claim(
        self, study: optuna.Study, trial: FrozenTrial, search: Search, chosen: Proposal
    ) -> None:
        """Tell other workers before the parameters are stored: write, then look again."""
        names = [axis.name for axis in search.knobs.axes]
        claim = dict(zip(names, map(float, chosen.network), strict=True))
        study._storage.set_trial_system_attr(trial._trial_id, CLAIM, claim)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A uniform draw, for a parameter that no stored trial has asked for yet."""
        number = trial.number if self.number is None else self.number
        entropy = (self._seed, number, zlib.crc32(param_name.encode()))
        derived = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        sampler = RandomSampler(seed=derived)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Stop `Study.optimize` when every network is known."""
        asked = self.infer_relative_search_space(study, trial)
        if not asked or not study._thread_local.in_optimize_loop:
            return
        space = self._space(study, asked)
        if space.search.exhausted(space.reader.history(study.get_trials(deepcopy=False))):
            optuna.logging.get_logger(__name__).info("Every feasible network is known: stopping.")
            study.stop()

    # --- what the trials mean -------------------------------------------------------------------

    def _space(self, study: optuna.Study, space: Mapping[str, BaseDistribution]) -> _Space:
        """Kept, as it holds the costs and the trials asked for so far."""
        directions = tuple(study.directions)
        key = (directions, tuple(sorted((name, repr(found)) for name, found in space.items())))
        if key not in self._spaces:
            search = self._made(space, directions)

            def error(trial: FrozenTrial) -> float:
                return self._measured(trial, directions)

            self._spaces = {key: _Space(search, TrialReader(search.knobs, error, self._network))}
        return self._spaces[key]

    def _made(
        self, space: Mapping[str, BaseDistribution], directions: tuple[StudyDirection, ...]
    ) -> Search:
        if not 0 <= self._learned < len(directions):
            raise StudyError(
                f"learned is {self._learned}, but the study has {len(directions)} objectives; "
                f"allowed: 0 to {len(directions) - 1}"
            )
        region = self._region or [None] * len(directions)
        if len(region) != len(directions):
            raise StudyError(
                f"region has {len(region)} entries for {len(directions)} objectives; allowed: "
                "(best, worst) or None for each"
            )
        signs = [1.0 if d is StudyDirection.MINIMIZE else -1.0 for d in directions]
        del signs[self._learned]
        knobs = Knobs({n: d for n, d in space.items() if n not in self._deployment})
        deployments = deployments_of({n: space[n] for n in space if n in self._deployment})
        table = CostTable(knobs, deployments, self._costs, self._vectorized, np.array(signs))
        learned = region[self._learned]
        return Search(
            knobs,
            table,
            [pair for i, pair in enumerate(region) if i != self._learned],
            self._scale,
            None if learned is None else self._error(learned[1], directions),
            self._features,
            self._startup,
            self._seed,
            self._candidates,
            None if self._limit is None else self._error(self._limit, directions),
        )

    def _error(self, value: float, directions: Sequence[StudyDirection]) -> float:
        """The learned objective, minimised."""
        if directions[self._learned] is StudyDirection.MINIMIZE:
            return value
        return 1.0 - value if self._scale.kind == "logit" else -value

    def _measured(self, trial: FrozenTrial, directions: Sequence[StudyDirection]) -> float:
        found = self._error(trial.values[self._learned], directions)
        if math.isfinite(found):
            self._scale.check(found)
        return found

    def front(self, study: optuna.Study) -> list[Design]:
        """The non-dominated designs of all trained networks on all their feasible deployments.

        `Study.best_trials` knows only the one deployment that a trial was asked for.
        """
        space = self.infer_relative_search_space(study, study.trials[0]) if study.trials else {}
        if not space:
            return []
        search = self._space(study, space).search
        signs = [1 if d is StudyDirection.MINIMIZE else -1 for d in study.directions]
        designs = [
            design
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            for design in self._designs(trial, search)
        ]
        if not designs:
            return []
        kept = non_dominated(np.array([design.values for design in designs]) * signs)
        return [design for design, keep in zip(designs, kept, strict=True) if keep]

    def _designs(self, trial: FrozenTrial, search: Search) -> list[Design]:
        names = {axis.name for axis in search.knobs.axes}
        network = {name: value for name, value in trial.params.items() if name in names}
        costs = search.table.of(np.nan_to_num(search.knobs.row(network))[None])[0]
        found = []
        for deployment, row in zip(search.table.deployments, costs, strict=True):
            if np.isfinite(row).all():
                values = (row * search.table.signs)[: len(trial.values) - 1].tolist()
                values.insert(self._learned, trial.values[self._learned])
                found.append(Design(trial.number, {**network, **deployment}, tuple(values)))
        return found


def _union(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Parameters of all trials; one whose distribution has changed is left to chance."""
    found: dict[str, BaseDistribution] = {}
    changed = set()
    for trial in trials:
        for name, distribution in trial.distributions.items():
            if found.setdefault(name, distribution) != distribution:
                changed.add(name)
    return {name: found[name] for name in sorted(found) if name not in changed}
