"""What comes next: Optuna's samplers on a study in memory, told of every finished trial.

A sampler is made anew for every trial from (seed, trial number), and the memory study is rebuilt
from stored trials, so a resumed study proposes what an uninterrupted one would have proposed.
"""

from __future__ import annotations

import random
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from dse import draws
from dse.candidate import Candidate
from dse.errors import StudyError
from dse.problem import Problem
from dse.rows import StudyRecord
from dse.samplers import GREY_BOX, draws_together, make_sampler, starts
from dse.search_costs import grey_box, searched
from dse.trial import METRICS, State, Trial

if TYPE_CHECKING:
    from dse.greybox import GreyBoxSampler

# Proposals of known candidates before the last one is changed a little instead.
MAX_REPEATS = 5
# Between the draws of two workers: more than the trials of any study.
STREAM = 10_000_019


@dataclass(frozen=True)
class Proposal:
    """A candidate to try as trial `number`; `asked` where a sampler waits to be told of it."""

    number: int
    candidate: Candidate
    params: Mapping[str, Any]
    attrs: Mapping[str, Any]
    asked: optuna.Trial | None
    baseline: str = ""


class Proposer:
    """Asks a study's sampler, and tells it; nothing here is stored as it stands.

    Trials that run while it asks are believed: the grey box takes them at their predicted means,
    TPE and the Gaussian process in ways of their own. `ordinal` makes workers draw differently.
    """

    def __init__(self, problem: Problem, record: StudyRecord, ordinal: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.problem, self.record, self.space = problem, record, problem.space
        grey = record.sampler in GREY_BOX
        self._objectives = searched(problem) if grey else problem.objectives
        self._study = optuna.create_study(
            directions=[METRICS[name].direction for name in self._objectives],
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        self._accuracies: list[float] = []
        self._baseline: float | None = None  # accuracy of the float32 network
        self._samples: int | None = None
        self._grey: GreyBoxSampler | None = None
        self._stream = ordinal * STREAM
        self._believed: dict[int, int] = {}  # number in the memory study, by trial
        self._together = draws_together(record.sampler, record.sampler_settings)

    # --- asking -------------------------------------------------------------------------------

    def propose(self, number: int, asked_before: int, known: Container[str]) -> Proposal | None:
        """A candidate whose key is not known yet; None when nothing is left.

        `asked_before` proposals came before this one, without the baselines.
        """
        draw = number + self._stream
        source = random.Random(self.record.seed * 1_000_003 + draw)
        if self.record.sampler == "grid" and self.space.conditional:
            params = draws.unseen(self.space, known, source)
            return None if params is None else self._enqueued(params, number)
        if asked_before < starts(self.record.sampler, self.record.sampler_settings):
            params = draws.spread(self.problem, known, source)
            if params is not None:
                return self._enqueued(params, number)
        self._study.sampler = self._sampler(draw)
        for _ in range(MAX_REPEATS):
            try:
                proposal = self._ask(number)
            except StudyError:  # the grey box has nothing left to train, or none that should fit
                return self._unexpected(number, known, source)
            if proposal.candidate.key not in known:
                return proposal
            assert proposal.asked is not None
            # A failed trial of the memory study: samplers pass over it, and nothing is stored.
            self._study.tell(proposal.asked, state=TrialState.FAIL)
        params = draws.near(self.space, proposal.params, known, source)
        params = params or draws.unseen(self.space, known, source)
        return None if params is None else self._enqueued(params, number)

    def _unexpected(
        self, number: int, known: Container[str], source: random.Random
    ) -> Proposal | None:
        """What was predicted to miss a limit, and may meet it: widths are found in training."""
        if not self.space.budgeted:
            return None

        def may_fit(candidate: Candidate) -> bool:
            return candidate.open and self.problem.screen(candidate).feasible

        params = draws.unseen(self.space, known, source, may_fit)
        return None if params is None else self._enqueued(params, number)

    def _enqueued(self, params: Mapping[str, Any], number: int) -> Proposal:
        self._study.enqueue_trial(dict(params))
        return self._ask(number)

    def _ask(self, number: int) -> Proposal:
        asked = self._asked()
        params = self.space.asked(asked.params)
        candidate = self.space.candidate(params)
        attrs = dict(self._study._storage.get_trial_system_attrs(asked._trial_id))
        if self._grey is not None:
            from dse.greybox.history import CLAIM

            attrs.pop(CLAIM, None)
        return Proposal(number, candidate, params, attrs, asked)

    def _asked(self) -> optuna.Trial:
        """A trial of the memory study with the knobs that its method of pruning asks for.

        Where the sampler needs a value of every knob, the others have what a resumed study gives.
        """
        distributions = self.space.distributions
        if self._together or not self.space.conditional:
            asked = self._study.ask(distributions)
            for name in set(distributions) - set(self.space.asks(asked.params)):
                value = distributions[name].to_internal_repr(self.space.filled({})[name])
                self._study._storage.set_trial_param(
                    asked._trial_id, name, value, distributions[name]
                )
            return asked
        asked = self._study.ask({"pruning": distributions["pruning"]})
        for name in self.space.asks(asked.params):
            asked._suggest(name, distributions[name])
        return asked

    def _sampler(self, draw: int) -> BaseSampler:
        """The sampler for a draw; the grey box is kept for the costs that it has asked for."""
        record = self.record
        if record.sampler not in GREY_BOX:
            return make_sampler(
                record.sampler,
                record.sampler_settings,
                record.seed,
                draw,
                self.space.choices,
                self.space.distributions,
                others=self._others(),
            )
        if self._grey is None:
            known = (self._baseline, self._samples)
            self._grey = grey_box(self.problem, record.sampler_settings, record.seed, *known)
        self._grey.number = draw
        return self._grey

    # --- telling ------------------------------------------------------------------------------

    def believe(self, trial: Trial) -> None:
        """A trial runs that no proposal of ours waits for: samplers are to take it into account."""
        if trial.state is State.RUNNING and trial.params and trial.number not in self._believed:
            self._believed[trial.number] = len(self._study.get_trials(deepcopy=False))
            self._study.add_trial(self._frozen(trial, TrialState.RUNNING))

    def tell(self, trial: Trial, asked: optuna.Trial | None = None) -> None:
        """Tell the sampler what came of a trial; `asked` is the proposal's, where it was ours."""
        place = self._believed.pop(trial.number, None)
        if asked is not None:
            self._end(trial, asked)
        elif place is not None:
            self._end(trial, place)
        else:
            self._add(trial)
        self._remember(trial)

    def learned_widths(self) -> None:
        """The space knows the widths of one more training: the grey box asks for costs anew.

        All that it derives from costs follows from the trials known by then, as after a resume.
        """
        self._grey = None

    def drop(self, proposal: Proposal) -> None:
        """Nothing comes of a proposal, as another worker has the same."""
        if proposal.asked is not None:
            self._study.tell(proposal.asked, state=TrialState.FAIL)

    def _others(self) -> bool:
        """Whether trials run while the sampler is asked."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _add(self, trial: Trial) -> None:
        """Take over a finished trial that no sampler waits for."""
        if self._tellable(trial):
            self._study.add_trial(self._frozen(trial))
        elif trial.params and self.record.sampler in GREY_BOX:
            self._study.add_trial(
                create_trial(
                    state=TrialState.FAIL,
                    **self._knobs(trial),
                )
            )

    def _end(self, trial: Trial, asked: optuna.Trial | int) -> None:
        """End a trial of the memory study that runs."""
        if not self._tellable(trial):
            self._study.tell(asked, state=TrialState.FAIL)
            return
        for name, value in self._constraints(trial).items():
            if isinstance(asked, int):
                found = self._study.get_trials(deepcopy=False)[asked]._trial_id
                key = f"constraints:{name}"
                self._study._storage.set_trial_system_attr(found, key, value)
            else:
                asked.set_constraint(name, value)
        self._study.tell(asked, self._values(trial))

    def _remember(self, trial: Trial) -> None:
        accuracy = trial.value("accuracy")
        if accuracy is None:
            return
        self._accuracies.append(accuracy)
        if trial.number == 0:
            self._baseline, self._samples = accuracy, trial.validation_samples or None
            self._grey = None  # made without them, if others were faster than the baseline

    def _frozen(self, trial: Trial, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
        done = state is TrialState.COMPLETE
        return create_trial(
            state=state,
            values=self._values(trial) if done else None,
            **self._knobs(trial),
            system_attrs=dict(trial.attrs),
            constraints=self._constraints(trial) if done else None,
        )

    def _knobs(self, trial: Trial) -> dict[str, Any]:
        """A trial's parameters with their distributions, as the sampler is to see them."""
        params = self.space.filled(trial.params) if self._together else dict(trial.params)
        return {
            "params": params,
            "distributions": {name: self.space.distributions[name] for name in params},
        }

    def _tellable(self, trial: Trial) -> bool:
        """A failed trial, or a baseline that no knob can express, teaches the sampler nothing.

        The grey box knows costs by itself: a trial without an accuracy says nothing more.
        """
        unknown = self.record.sampler in GREY_BOX and trial.value("accuracy") is None
        return trial.state is not State.FAILED and bool(trial.params) and not unknown

    def _values(self, trial: Trial) -> list[float]:
        """Objectives as samplers see them: costs by logarithm, an unknown accuracy at the mean.

        A rejected candidate has no accuracy; samplers order it by its constraints. Of costs that
        are not known the lower end stands for the value, where there is one.
        """
        mean = float(np.mean(self._accuracies)) if self._accuracies else 0.5
        values = []
        for name in self._objectives:
            value = trial.value(name)
            if name == "accuracy":
                values.append(mean if value is None else value)
            else:
                low = trial.metrics[name].low if value is None and name in trial.metrics else None
                values.append(float(np.log10(value or low or 1.0)))
        return values

    def _constraints(self, trial: Trial) -> dict[str, float]:
        """Every constraint gets a value in every trial; one that was not decided counts as met."""
        names = {*trial.violations, *(c.text for c in self.problem.study.constraints)}
        return {name: trial.violations.get(name, 0.0) for name in sorted(names)}
