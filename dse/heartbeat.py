"""A worker's heartbeat, and its eye on the others': a thread beside the work."""

from __future__ import annotations

import threading
from types import TracebackType

from dse.errors import StorageError
from dse.leases import BEATS_PER_LEASE, Worker
from dse.storage import Storage


class Heartbeat:
    """Beats six times a lease, and gives up workers that made no beat in a lease of our own beats.

    It counts looks, not seconds: while the database is away nobody can beat, and nobody is lost.
    """

    def __init__(self, storage: Storage, study: str, worker_id: int, lease_s: float) -> None:
        self._storage, self._study, self._worker_id = storage, study, worker_id
        self._pause_s = lease_s / BEATS_PER_LEASE
        self._seen: dict[int, tuple[int, int]] = {}  # by worker: its beats, looks without a new one
        self._over = threading.Event()
        self._error: StorageError | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(self._pause_s + 1.0)

    def check(self) -> None:
        """Raise what ended the heartbeat: without one, others take over what is in hand."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._over.wait(self._pause_s):
            try:
                silent = self.silent(self._storage.beat(self._study, self._worker_id))
                if silent:
                    self._storage.give_up(self._study, silent)
            except StorageError as error:
                self._error = error
                return

    def silent(self, live: list[Worker]) -> list[Worker]:
        """The workers that made no beat for a lease, or whose process on this host is gone."""
        seen, self._seen = self._seen, {}
        for worker in live:
            beats, looks = seen.get(worker.worker_id, (-1, 0))
            same = worker.beats == beats
            self._seen[worker.worker_id] = (worker.beats, looks + 1 if same else 0)
        return [
            worker
            for worker in live
            if worker.worker_id != self._worker_id
            and (self._seen[worker.worker_id][1] > BEATS_PER_LEASE or worker.gone)
        ]
