"""The local pool: processes that only train and measure, while their parent decides and stores.

A process that dies, grows over the memory limit or takes too long ends its own task only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeAlias

from dse.evaluation import Failed, HandedBack, Lost, Measuring, Outcome, Task, perform
from dse.units import format_quantity

# Makes the evaluator in the process that uses it; it is told when to stop.
Maker: TypeAlias = Callable[[Callable[[], bool]], Measuring]
# How often a process's memory and time are looked at.
WATCH_S = 0.25


@dataclass(frozen=True)
class Limits:
    """What one trial may use: bytes of memory, seconds of time; None is no limit."""

    memory_bytes: int | None = None
    trial_s: float | None = None

    def excess(self, seconds: float, used_bytes: int) -> str | None:
        """What a trial that took and used this much has too much of, in words."""
        if self.trial_s is not None and seconds > self.trial_s:
            return f"took longer than a trial may ({format_quantity(self.trial_s, 'seconds')})"
        if self.memory_bytes is not None and used_bytes > self.memory_bytes:
            used, allowed = (format_quantity(n, "bytes") for n in (used_bytes, self.memory_bytes))
            return f"used {used} of memory, more than a trial may ({allowed})"
        return None


NO_LIMITS = Limits()


def memory_bytes(process: int) -> int:
    """What a process holds in memory now (proc(5), statm: resident pages); 0 when it is gone."""
    try:
        text = Path(f"/proc/{process}/statm").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


class LocalPool:
    """`slots` processes, made when they are needed, each with its share of the processors.

    `make` is called once in each, so nothing heavy is loaded before something is to be trained.
    It must be found by name (a function of a module, or `functools.partial` of one).
    """

    def __init__(self, make: Maker, slots: int, limits: Limits = Limits()) -> None:
        self.slots, self._make, self._limits = slots, make, limits
        self._context = get_context("spawn")
        self._stop = self._context.Event()
        self._threads = max(1, (os.cpu_count() or 1) // slots)
        self._idle: list[_Child] = []
        self._busy: dict[int, _Child] = {}
        self._lost: list[tuple[int, Outcome]] = []

    def submit(self, number: int, task: Task) -> None:
        """Give the task to a process; a second one of a trial goes where its first was done."""
        child = self._idle.pop() if self._idle else self._new()
        self._busy[number] = child
        try:
            child.pipe.send(task)
        except OSError:  # it died while it had nothing to do
            self._lost.append((number, Lost(child.end())))
            del self._busy[number]

    def wait(self, timeout_s: float) -> Sequence[tuple[int, Outcome]]:
        """Outcomes that are there, after waiting for the first one so long at most."""
        found, self._lost = self._lost, []
        deadline = time.monotonic() + (0.0 if found else timeout_s)
        while True:
            left = max(0.0, deadline - time.monotonic())
            pipes = {child.pipe: number for number, child in self._busy.items()}
            for pipe in connection.wait(list(pipes), min(left, WATCH_S)):
                found += self._received(pipes[pipe])  # type: ignore[index]
            found += self._over_limits()
            if found or time.monotonic() >= deadline:
                return found

    def _received(self, number: int) -> list[tuple[int, Outcome]]:
        child = self._busy[number]
        try:
            outcome: Outcome | None = child.pipe.recv()
        except (EOFError, OSError):
            del self._busy[number]
            return [(number, Lost(child.end()))]
        if outcome is None:  # it is ready, and begins: a trial's time is its own
            child.began = time.monotonic()
            return []
        child.began = None
        self._idle.append(self._busy.pop(number))
        return [(number, outcome)]

    def _over_limits(self) -> list[tuple[int, Outcome]]:
        """Processes that had to be ended, each with its task."""
        found: list[tuple[int, Outcome]] = []
        for number, child in list(self._busy.items()):
            reason = self._excess(child)
            if reason is not None and not child.pipe.poll():
                del self._busy[number]
                child.end()
                found.append((number, Failed(reason)))
        return found

    def _excess(self, child: _Child) -> str | None:
        watched = self._limits.memory_bytes is not None
        used = memory_bytes(child.process.pid or 0) if watched else 0
        seconds = 0.0 if child.began is None else time.monotonic() - child.began
        return self._limits.excess(seconds, used)

    def interrupt(self) -> None:
        """Ask every process to hand back what it does."""
        self._stop.set()

    def close(self) -> None:
        """End every process at once."""
        for child in [*self._idle, *self._busy.values()]:
            child.end()
        self._idle, self._busy = [], {}

    @property
    def processes(self) -> list[int]:
        """Numbers of the processes that are there."""
        found = [child.process.pid for child in [*self._idle, *self._busy.values()]]
        return [number for number in found if number is not None]

    def _new(self) -> _Child:
        return _Child(self._context, self._make, self._stop, self._threads, self._limits)


class _Child:
    """A process of the pool and the pipe to it."""

    def __init__(
        self,
        context: SpawnContext,
        make: Maker,
        stop: Event,
        threads: int,
        limits: Limits,
    ) -> None:
        self.pipe, other = context.Pipe()
        arguments = (make, other, stop, threads, limits.memory_bytes)
        self.process: SpawnProcess = context.Process(target=_serve, args=arguments, daemon=True)
        # Ctrl-C reaches every process of a terminal; only the parent is to act on it.
        with _blocked(signal.SIGINT):
            self.process.start()
        other.close()
        self.began: float | None = None  # when it began its task

    def memory_bytes(self) -> int:
        """What the process holds in memory now (proc(5), statm: resident pages)."""
        try:
            text = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        except OSError:
            return 0
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> str:
        """Make sure that it is gone; how it ended, in words."""
        self.process.join(0.5)  # a pipe breaks a moment before its process ends
        running = self.process.exitcode is None
        if running:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.pipe.close()
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = ", as when memory runs out" if code == -signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the child -------------------------------------------------------------------------------


def _serve(
    make: Maker, pipe: Connection, stop: Event, threads: int, memory_bytes: int | None
) -> None:
    """Do tasks until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _prefer_to_be_killed()
    evaluator: Measuring | None = None
    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        if stop.is_set():
            pipe.send(HandedBack())
            continue
        if evaluator is None:
            evaluator = make(stop.is_set)
        pipe.send(None)
        pipe.send(perform(task, evaluator))


def _end_with_parent() -> None:
    """A parent that was killed hangs up only when the training is over: do not wait for that."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prefer_to_be_killed() -> None:
    """Where the machine's memory runs out, the kernel ends a training and not the parent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
