"""Trials as tasks of a Ray cluster: placement, elasticity and retries are Ray's.

Every storage call stays with the explorer that submits the tasks, so the database is the only
truth: a cluster may come, grow, lose nodes and go, and nothing of a study is kept in it.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dse.errors import DseError, StudyError
from dse.evaluation import Failed, HandedBack, Lost, Measuring, Outcome, Task, perform
from dse.workers import NO_LIMITS, Limits, Maker, memory_bytes

INSTALL = 'pip install "dse[ray]"'
# How often Ray does a task again whose process or node was lost, before the trial counts as lost.
RETRIES = 3
# How often the cluster is asked for its size.
DEAF_S = 20.0  # from the first request to end on
LOOK_S = 5.0
OBJECT_STORE_BYTES = 100 * 2**20  # of a cluster started here; networks are kilobytes


@dataclass(frozen=True)
class Share:
    """What one trial asks of a node: cores and GPUs, whole or in part."""

    cores: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not (self.cores > 0 and math.isfinite(self.cores)):
            raise StudyError(f"--trial-cores is {self.cores:g}; allowed: above 0, such as 2 or 0.5")
        if not (self.gpus >= 0 and math.isfinite(self.gpus)):
            raise StudyError(f"--trial-gpus is {self.gpus:g}; allowed: 0 and above, such as 0.5")


@dataclass(frozen=True)
class Cluster:
    """Which Ray cluster, None for one of this machine's, and what a trial asks of it."""

    address: str | None = None
    share: Share = Share()


class RayExecutor:
    """Tasks on the Ray cluster at `address`, or on one that is started here for the time being.

    `slots` are as many as fit into the cluster, and follow its size, unless they are given: then
    as many tasks are queued, which makes Ray's autoscaler add nodes. `make` is as for the local
    pool, and needs dse (and the study's own modules) installed on every node.
    Raises StudyError when Ray is not installed or the cluster does not answer.
    """

    def __init__(
        self,
        make: Maker,
        address: str | None = None,
        share: Share = Share(),
        slots: int | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._ray, self._share, self._fixed, self._limits = _ray(), share, slots, limits
        self._connect(address)
        self._make = make
        self._refs: dict[Any, int] = {}
        self._interrupted: float | None = None  # when
        self._looked, self.slots = -math.inf, slots or 1
        self._look()
        options: dict[str, Any] = {"num_cpus": share.cores, "num_gpus": share.gpus}
        if limits.memory_bytes is not None:
            options["memory"] = limits.memory_bytes
        self._run = self._ray.remote(_perform).options(
            **options, max_retries=RETRIES, retry_exceptions=False
        )

    def submit(self, number: int, task: Task) -> None:
        """Queue the task; Ray finds a node for it."""
        self._refs[self._run.remote(self._make, self._limits, task)] = number

    def wait(self, timeout_s: float) -> Sequence[tuple[int, Outcome]]:
        """Outcomes that are there, after waiting for the first one so long at most."""
        self._look()
        refs = list(self._refs)
        if not refs:
            return []
        self._ray.wait(refs, num_returns=1, timeout=timeout_s)
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        if self._interrupted is not None and not ready:
            self.interrupt()  # Ray may lose a request that meets the beginning of a task
        return [(self._refs.pop(ref), self._outcome(ref)) for ref in ready]

    def interrupt(self) -> None:
        """Ask Ray to end every task, which is then handed back; its process is ended if it is deaf.

        A task may lose the request in code that swallows it, and Ray makes none twice.
        """
        now = time.monotonic()
        self._interrupted = now if self._interrupted is None else self._interrupted
        for ref in self._refs:
            self._ray.cancel(ref, force=now - self._interrupted > DEAF_S)

    def close(self) -> None:
        """End every task at once, and leave the cluster; one that was started here ends."""
        for ref in self._refs:
            self._ray.cancel(ref, force=True)
        self._refs = {}
        self._ray.shutdown()

    def _connect(self, address: str | None) -> None:
        _check_answers(address)
        started = {} if address else {"object_store_memory": OBJECT_STORE_BYTES}
        try:
            self._ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="error",
                **started,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            why = " ".join(str(error).split())[:300]
            raise StudyError(
                f"the Ray cluster at '{address or 'this machine'}' cannot be used: {why}; start "
                "one with 'ray start --head', or leave out --address"
            ) from error

    def _look(self) -> None:
        """Follow the size of the cluster."""
        if self._fixed is not None or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        there = self._ray.cluster_resources()
        fit = there.get("CPU", 0.0) / self._share.cores
        if self._share.gpus:
            fit = min(fit, there.get("GPU", 0.0) / self._share.gpus)
        self.slots = max(1, int(fit))

    def _outcome(self, ref: Any) -> Outcome:
        exceptions = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(ref)
        except exceptions.TaskCancelledError:
            return HandedBack()
        except exceptions.RayTaskError as error:
            return Failed(_first_line(error.cause if error.cause is not None else error))
        except exceptions.RayError as error:
            if self._interrupted is not None:
                return HandedBack()
            return Lost(f"Ray lost its task {RETRIES + 1} times: {_first_line(error)}")
        return outcome


def _ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing about a study is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise StudyError(f"--executor ray needs Ray, which is not installed; {INSTALL}") from error
    return ray


def _check_answers(address: str | None) -> None:
    """Ray itself would try for minutes."""
    host, mark, port = (address or "").rpartition(":")
    if not mark or "//" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise StudyError(
            f"nothing answers at {address} ({error.strerror or error}); start a cluster with "
            "'ray start --head', or leave out --address"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else '-'}"


# --- on a node ------------------------------------------------------------------------------------

_EVALUATORS: dict[str, Measuring] = {}
_WATCH_S = 0.25


class _Excess(BaseException):
    """The task uses more than a trial may."""


def _perform(make: Maker, limits: Limits, task: Task) -> Outcome:
    """Do a task in a process of the cluster, which keeps its evaluator for the next one."""
    key = repr(make)
    try:
        if key not in _EVALUATORS:
            _EVALUATORS.clear()
            _EVALUATORS[key] = make(lambda: False)
        with _held_to(limits):
            return perform(task, _EVALUATORS[key])
    except _Excess as excess:
        return Failed(str(excess))
    except DseError as error:  # the data are not on this node, for example
        return Failed(_first_line(error))


@contextmanager
def _held_to(limits: Limits) -> Iterator[None]:
    """End what the block does, once it uses more than a trial may."""
    if limits == NO_LIMITS:
        yield
        return
    over, reason, began = threading.Event(), "", time.monotonic()

    def act(number: int, frame: object) -> None:
        raise _Excess(reason)

    def watch() -> None:
        nonlocal reason
        while not over.wait(_WATCH_S):
            found = limits.excess(time.monotonic() - began, memory_bytes(os.getpid()))
            if found is not None:
                reason = found
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                return

    before = signal.signal(signal.SIGALRM, act)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGALRM, before)
