"""Designs proven while a study explores: built, run on an emulated core, and stored beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy.typing as npt

from dse.candidate import Candidate
from dse.errors import DseError, TargetError
from dse.firmware.build import find_compiler
from dse.firmware.emit import BACKENDS
from dse.firmware.emulate import check_emulator
from dse.firmware.verify import Verification, verify
from dse.graph.archive import from_bytes
from dse.problem import Problem
from dse.storage import Storage
from dse.targets import Target
from dse.trial import Proof, Trial

if TYPE_CHECKING:
    from dse.explorer import Listener

VERIFICATION = "verification"
SAMPLES = 20


def check_provable(problem: Problem) -> None:
    """Refuse a study whose designs nobody here can build and run, before anything is trained.

    Raises TargetError with what to install, or when no target of the study has C of ours.
    """
    find_compiler()
    check_emulator()
    if not any(provable(target) for target in problem.targets.values()):
        raise TargetError(
            "no backend of the study emits C that could be run; add 'native' to 'space.backends' "
            "or leave 'verify' out"
        )


def provable(target: Target) -> bool:
    """Whether the target's backend is C of ours."""
    return target.backend.name in BACKENDS


def store_proof(storage: Storage, study: str, number: int, found: Verification) -> None:
    """Keep what verifying a trial on its own target gave."""
    details = json.dumps(found.to_json()).encode()
    storage.prove(study, number, found.proof, {VERIFICATION: details})


class Prover:
    """Hears of every stored trial, hands it on, and proves what `which` asks for.

    `which` is 'front' (each design that is on the front) or 'always' (each feasible design). A
    design that cannot be built is stored with the reason. `inputs` are (N, ...) float test samples.
    """

    def __init__(
        self,
        listener: Listener,
        storage: Storage,
        study: str,
        problem: Problem,
        which: str,
        inputs: npt.ArrayLike,
    ) -> None:
        self.listener, self.storage, self.study = listener, storage, study
        self.problem, self.which, self.inputs = problem, which, inputs
        self._open: dict[int, Target] = {}
        self._front: tuple[int, ...] = ()
        for trial in storage.trials(study):
            self._note(trial)
        changes = storage.fronts(study)
        self._front = changes[-1].members if changes else ()

    def catch_up(self) -> None:
        """Prove what an earlier run left over."""
        self._prove(tuple(self._open) if self.which == "always" else self._front)

    def begun(self, trial: Trial) -> None:
        """A trial starts to train."""
        self.listener.begun(trial)

    def ended(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        """A trial was stored; prove it, and what else is due."""
        self.listener.ended(trial, front, hypervolume)
        self._note(trial)
        self._prove((trial.number,) if self.which == "always" else front)

    def heard(self, trial: Trial, front: Sequence[int], hypervolume: float) -> None:
        """Another worker has stored a trial; it proves its own."""
        self.listener.heard(trial, front, hypervolume)

    def _note(self, trial: Trial) -> None:
        if not trial.eligible or trial.proof is not None:
            return
        target = self.problem.targets[Candidate.from_json(trial.candidate).target]
        if provable(target):
            self._open[trial.number] = target

    def _prove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            target = self._open.pop(number, None)
            blob = None if target is None else self.storage.network(self.study, number)
            if target is None or blob is None:
                continue
            try:
                rounding = target.backend.rounding
                found = verify(from_bytes(blob), target, rounding, self.inputs)
            except DseError as error:
                proof = Proof(target.key, reason=" ".join(str(error).split()))
                self.storage.prove(self.study, number, proof, {})
            else:
                store_proof(self.storage, self.study, number, found)
