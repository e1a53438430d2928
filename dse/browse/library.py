"""The studies of a database as the page reads them: cached, and read again only where they grew.

Nothing stays open between two looks, so a running study is neither locked nor slowed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from dse.browse.view import UID, combined
from dse.database import make_engine, parse_url, sentences, sqlite_path
from dse.errors import StorageError, nearest
from dse.overview import Overview, read_overview, refreshed
from dse.rows import StudySummary
from dse.storage import Storage
from dse.trial import Trial

# Changes of finished trials (a test accuracy) show after this long at the latest.
WHOLE_READ_S = 120.0


@dataclass
class _Kept:
    overview: Overview
    mark: str
    whole_read: float


class Library:
    """Every study of one database, for reading. Threads share it; errors are StorageErrors."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._parsed = parse_url(url)
        self._kept: dict[str, _Kept] = {}
        self._joined: tuple[tuple[Overview, ...], pd.DataFrame] | None = None
        self._lock = threading.RLock()

    @property
    def shown_name(self) -> str:
        """The database as the page may show it: no folder, user, host or password."""
        path = sqlite_path(self._parsed)
        return path.name if path is not None else f"PostgreSQL · {self._parsed.database}"

    @property
    def storage_option(self) -> str:
        """How command lines on the page name the database: without folders and secrets."""
        path = sqlite_path(self._parsed)
        return f"sqlite:///{path.name}" if path is not None else '"$DSE_STORAGE"'

    def public(self, text: str) -> str:
        """A message without the machine's paths and the URL."""
        path = sqlite_path(self._parsed)
        hidden = [self.url, self._parsed.render_as_string(hide_password=True)]
        hidden += [str(path.absolute()), str(path)] if path is not None else []
        for found in sorted(hidden, key=len, reverse=True):
            text = text.replace(found, self.shown_name)
        return " ".join(text.split())

    def open(self) -> Storage:
        """A read-only connection of one's own."""
        return Storage.open_readonly(self.url)

    def mark(self) -> str:
        """A text that changes whenever the database does; costs next to nothing.

        SQLite: size and time of the file and its log, without opening it. PostgreSQL: the
        transactions committed so far.
        """
        path = sqlite_path(self._parsed)
        if path is None:
            return self._server_mark()
        found = []
        for part in (path, path.with_name(path.name + "-wal")):
            try:
                stat = part.stat()
            except FileNotFoundError:
                continue
            if stat.st_size:  # an empty log comes and goes with whoever looks
                found.append(f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}")
        if not found:
            raise StorageError(f"there is no database at {path}; it was moved or deleted")
        return "/".join(found)

    def _server_mark(self) -> str:
        engine = make_engine(self._parsed, readonly=True)
        with sentences(self._parsed), engine.connect() as connection:
            query = "select max(finished), count(*), count(proof_json) from dse_evaluations"
            row = connection.execute(sa.text(query)).one()
        engine.dispose()
        return "/".join(map(str, row))

    def summaries(self) -> list[StudySummary]:
        """All studies, oldest first."""
        with self.open() as storage:
            return storage.studies()

    def overview(self, name: str) -> Overview:
        """A study as it is now."""
        with self._lock:
            mark, now, kept = self.mark(), time.monotonic(), self._kept.get(name)
            if kept is not None and kept.mark == mark:
                return kept.overview
            with self.open() as storage:
                if kept is None or now - kept.whole_read > WHOLE_READ_S:
                    kept = _Kept(read_overview(storage, name), mark, now)
                else:
                    kept = _Kept(refreshed(storage, kept.overview), mark, kept.whole_read)
            self._kept[name] = kept
            return kept.overview

    def overviews(self, names: Sequence[str]) -> tuple[Overview, ...]:
        """Several studies; unknown names raise a StorageError with the nearest."""
        return tuple(self.overview(name) for name in names)

    def joined(self, overviews: Sequence[Overview]) -> pd.DataFrame:
        """The trials of several studies in one table (dse/browse/view.py), kept until one grows."""
        with self._lock:
            given = tuple(overviews)  # an overview equals only itself
            if self._joined is None or self._joined[0] != given:
                self._joined = (given, combined(given))
            return self._joined[1]

    def trial(self, name: str, number: int) -> Trial:
        """One trial, whole."""
        with self.open() as storage:
            return storage.trial(name, number)

    def known(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are studies here; the newest study when none is."""
        there = [found.name for found in self.summaries()]
        chosen = [name for name in names if name in there]
        if names and not chosen:
            raise StorageError(
                f"no study '{names[0]}' in {self.shown_name}; {nearest(names[0], there)}"
            )
        return chosen or there[-1:]


def uid_of(position: int, number: int) -> int:
    """One number for a trial of the study at this place of the view."""
    return position * UID + number


def place_of(uid: int, names: Sequence[str]) -> tuple[str, int] | None:
    """The study and trial behind a uid, None when the study is not in the view any more."""
    position, number = divmod(uid, UID)
    return (names[position], number) if 0 <= position < len(names) else None


def counts_of(overview: Overview) -> Mapping[str, int]:
    """Trials by state."""
    return {str(k): int(v) for k, v in overview.table["state"].value_counts().items() if v}
