"""Opening a database: its URL, the engine with sane settings, and errors as sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from dse.errors import StorageError, nearest

BUSY_TIMEOUT_S = 60
SCHEMES = ("sqlite", "postgresql")
_POSTGRES_HINT = 'pip install "dse[postgresql]"'
# What SQLite says, and what it means to the person at the keyboard.
_SQLITE_SENTENCES = {
    "file is not a database": "it is not a SQLite database; give the path of another file",
    "disk image is malformed": "the file is damaged; restore a copy of it",
    "unable to open database file": "it cannot be opened; check the path and its permissions",
    "readonly database": "no permission to write to it; check the permissions of file and folder",
    "database is locked": f"another process kept it locked for {BUSY_TIMEOUT_S} s; end it and "
    "try again",
    "disk is full": "the disk is full; free some space and resume",
    "no such table": "a table is missing: the file was deleted or replaced while it was open",
    "disk i/o error": "the disk reports an error, or the file was deleted while it was open",
}


def parse_url(text: str) -> URL:
    """The URL of a database, checked: `sqlite:///file.db` or `postgresql://user@host/name`.

    Raises StorageError when it is no URL, or the kind of database is not supported.
    """
    if "://" not in text:
        raise StorageError(f"'{text}' is not a storage URL; write sqlite:///{text or 'study.db'}")
    try:
        url = sa.make_url(text)
        kind = url.get_backend_name()
    except (SQLAlchemyError, ValueError) as error:
        raise StorageError("the storage URL cannot be read; write sqlite:///study.db") from error
    kind = "postgresql" if kind == "postgres" else kind
    if kind not in SCHEMES:
        raise StorageError(f"unknown storage '{kind}://'; {nearest(kind, SCHEMES)}")
    if kind == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise StorageError(f"'{text}' names no file; write sqlite:///study.db")
    if kind == "postgresql" and url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")  # the driver of our extra
    return url


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL, None for a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def shown(url: URL) -> str:
    """The URL as messages and reports may show it: without its password."""
    return url.render_as_string(hide_password=True)


def make_engine(url: URL, *, readonly: bool = False) -> Engine:
    """An engine whose writing transactions begin as such, so that none fails half-way.

    A transaction writes when its connection has the execution option `dse_write`. SQLite: write-
    ahead logging, synchronous=NORMAL (a power cut can lose the last commits, never damage the
    file: https://www.sqlite.org/pragma.html#pragma_synchronous), foreign keys, and 60 s of
    patience. With `readonly` nothing is created, locked or written.
    Raises StorageError when the driver is not installed.
    """
    path = sqlite_path(url)
    if path is not None:
        return _sqlite_engine(url, path, readonly)
    try:
        options = {"postgresql_readonly": True} if readonly else {}
        return sa.create_engine(url, pool_pre_ping=True, execution_options=options)
    except ImportError as error:
        raise StorageError(
            f"PostgreSQL needs a driver that is not installed; {_POSTGRES_HINT}"
        ) from error


def _sqlite_engine(url: URL, path: Path, readonly: bool) -> Engine:
    if not readonly:
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
        pragmas = ["journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"]
    else:
        # Quoted, or a '?' or '%' in the name would end or change it.
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        if _cannot_share(path):
            uri += "&immutable=1"
        engine = sa.create_engine(
            URL.create("sqlite", database=uri, query={"uri": "true"}),
            connect_args={"timeout": BUSY_TIMEOUT_S},
            poolclass=NullPool,  # nothing stays open between two looks
        )
        pragmas = ["query_only=ON"]

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves; DDL then is transactional too
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A read that turns into a write can fail at once in WAL mode, whatever the timeout.
        write = connection.get_execution_options().get("dse_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _cannot_share(path: Path) -> bool:
    """Whether the folder forbids the file of shared memory that reading a log needs.

    Without a log beside it nobody is writing, so the file can be read as immutable.
    """
    log = path.with_name(path.name + "-wal")
    return not log.exists() and not os.access(path.parent, os.W_OK, effective_ids=True)


@contextmanager
def sentences(url: URL) -> Iterator[None]:
    """Turns the database's exceptions into one StorageError that says what to do."""
    try:
        yield
    except DBAPIError as error:
        said = str(error.orig).strip()
        found = (text for key, text in _SQLITE_SENTENCES.items() if key in said.lower())
        meaning = next(found, " ".join(said.split()))
        raise StorageError(f"database {shown(url)}: {meaning}") from error
