"""Workers of a study, their heartbeats, and the trials they hold: rows of dse_workers, dse_claims.

No clock decides who is lost: a worker counts its heartbeats, and whoever sees no new one for as
long as a lease by its own steady clock says so. A process of this host that is gone is lost at
once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dse import schema
from dse.errors import StorageError
from dse.optuna_tables import insert_one
from dse.rows import dump

# How long a worker may be silent, and how often it says that it is there.
LEASE_S = 60.0
BEATS_PER_LEASE = 6
# A trial that was begun this often and never finished is stored as failed.
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Worker:
    """A process that works on a study, or did.

    `ordinal` is the smallest number that no other live worker of the study had when it joined.
    `host` and `process` say where it runs, `slot` what it has. `joined`, `seen` and `ended` are
    seconds since 1970 by the database's clock; `ended` is None while it works, `ending` then is
    'left' or 'lost'. `finished` counts its trials, `holds` are the numbers of those it runs.
    """

    worker_id: int
    ordinal: int
    host: str
    process: str
    slot: Mapping[str, str]
    joined: float
    seen: float
    beats: int
    finished: int
    ended: float | None
    ending: str
    holds: tuple[int, ...] = ()

    @property
    def live(self) -> bool:
        """Whether it has neither left nor been given up."""
        return self.ended is None

    @property
    def gone(self) -> bool:
        """Whether it ran on this host and its process is no more."""
        return self.live and self.host == this_host() and not _runs(self.process)


def this_host() -> str:
    """A name for what a process number means something in: boot and process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return socket.gethostname()
    return f"{socket.gethostname()} {boot} {space}"


def this_process() -> str:
    """This process by number and start, as numbers are used again."""
    return _process(os.getpid())


def _process(number: int) -> str:
    return f"{number} {_start_of(number)}"


def _start_of(number: int) -> str:
    """Clock ticks from boot to the process's start (proc(5), field 22); empty when it is gone."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text[text.rindex(")") + 2 :].split()
    return "" if fields[0] in "ZX" else fields[19]  # a zombie is gone, too


def _runs(process: str) -> bool:
    if not Path("/proc/self/stat").exists():  # not Linux: only its silence tells
        return True
    return _process(int(process.split()[0])) == process


def now(connection: Connection) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's clock, to be shown and never compared with ours."""
    if connection.dialect.name == "postgresql":
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float(53))
    return (sa.func.julianday("now") - 2440587.5) * 86400.0


def workers_of(connection: Connection, study_id: int, *, live: bool = False) -> list[Worker]:
    """The study's workers in the order they joined, those alone that work now with `live`."""
    table, claims, evaluations = schema.workers, schema.claims.c, schema.evaluations.c
    mine = table.c.study_id == study_id
    chosen = sa.select(table).where(mine & table.c.ended.is_(None) if live else mine)
    found = connection.execute(chosen.order_by(table.c.worker_id)).mappings().all()
    held = connection.execute(
        sa.select(claims.worker_id, evaluations.number)
        .join(schema.evaluations, evaluations.evaluation_id == claims.evaluation_id)
        .where(claims.study_id == study_id)
        .order_by(evaluations.number)
    ).all()
    holds: dict[int, list[int]] = {}
    for worker_id, number in held:
        holds.setdefault(worker_id, []).append(number)
    return [_worker(row, holds.get(row["worker_id"], [])) for row in found]


def _worker(row: Mapping[Any, Any], holds: list[int]) -> Worker:
    named = {key: value for key, value in row.items() if key not in ("study_id", "slot_json")}
    return Worker(**named, slot=json.loads(row["slot_json"]), holds=tuple(holds))


def join(connection: Connection, study_id: int, slot: Mapping[str, str]) -> Worker:
    """Enter this process as a worker of the study."""
    taken = {worker.ordinal for worker in workers_of(connection, study_id, live=True)}
    ordinal = next(n for n in range(len(taken) + 1) if n not in taken)
    clock = connection.execute(sa.select(now(connection))).scalar_one()
    row = {
        "study_id": study_id,
        "ordinal": ordinal,
        "host": this_host(),
        "process": this_process(),
        "slot_json": dump(dict(slot)),
        "joined": clock,
        "seen": clock,
        "beats": 0,
        "finished": 0,
        "ending": "",
    }
    worker_id = insert_one(connection, schema.workers, row)
    found = workers_of(connection, study_id, live=True)
    return next(worker for worker in found if worker.worker_id == worker_id)


def beat(connection: Connection, worker_id: int) -> None:
    """Count one more heartbeat; a worker that was given up is back."""
    table = schema.workers
    done = connection.execute(
        sa.update(table)
        .where(table.c.worker_id == worker_id)
        .values(beats=table.c.beats + 1, seen=now(connection), ended=None, ending="")
    )
    if done.rowcount == 0:
        raise StorageError(f"worker {worker_id} is no longer known; its study was deleted")


def end(connection: Connection, worker_id: int, ending: str) -> None:
    """The worker has 'left', or is 'lost'."""
    table = schema.workers
    connection.execute(
        sa.update(table)
        .where(table.c.worker_id == worker_id)
        .values(ended=now(connection), ending=ending)
    )


def count_finished(connection: Connection, worker_id: int) -> None:
    """One more trial that this worker finished."""
    table = schema.workers
    connection.execute(
        sa.update(table).where(table.c.worker_id == worker_id).values(finished=table.c.finished + 1)
    )
