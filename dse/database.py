"""Opening a database: its URL, the engine with sane settings, and errors as sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, SQLAlchemyError
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


class UnreachableError(StorageError):
    """The server cannot be reached now, or ended the connection: it may work in a moment."""


# SQLSTATE codes that pass by themselves (PostgreSQL, appendix A): connection lost, too many
# connections, server shutting down or starting, and two transactions in each other's way.
_PASSING = ("08", "53300", "57P01", "57P02", "57P03", "25P03", "40001", "40P01")
# A cut link is noticed within half a minute at both ends, and a transaction that its worker left
# open does not lock others out for longer.
_CLIENT = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_SERVER = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; "
    "SET tcp_user_timeout = 25000; SET idle_in_transaction_session_timeout = 30000"
)


def parse_url(text: str) -> URL:
    """The URL of a database, checked: `sqlite:///file.db` or `postgresql://user@host/name`.

    Raises StorageError when it is no URL, or the kind of database is not supported.
    """
    if "://" not in text:
        text = without_password(text)
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


def without_password(text: str) -> str:
    """A storage URL as it was given, well-formed or not, fit to be shown."""
    # From the colon after the user to the last at sign, as a password may hold both.
    return re.sub(r"(://[^/@:]*|^[^/@:]*(?=:(?!//))):\S*@", r"\1:***@", text)


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
    return _server_engine(url, readonly)


def _server_engine(url: URL, readonly: bool) -> Engine:
    """One connection is kept, two more come and go: 64 workers stay below PostgreSQL's 100."""
    options = {"postgresql_readonly": True} if readonly else {}
    given = {name: value for name, value in _CLIENT.items() if name not in url.query}
    try:
        engine = sa.create_engine(
            url,
            pool_pre_ping=True,
            execution_options=options,
            pool_size=1,
            max_overflow=2,
            pool_timeout=BUSY_TIMEOUT_S,
            connect_args=given,
        )
    except ImportError as error:
        raise StorageError(
            f"PostgreSQL needs a driver that is not installed; {_POSTGRES_HINT}"
        ) from error

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_SERVER)
        connection.commit()

    return engine


def _sqlite_engine(url: URL, path: Path, readonly: bool) -> Engine:
    if not readonly:
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
        pragmas = ["journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"]
    else:
        engine = sa.create_engine(
            URL.create("sqlite", database=readonly_uri(path), query={"uri": "true"}),
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


def readonly_uri(path: Path) -> str:
    """What opens a SQLite file without creating, locking or changing anything."""
    # Quoted, or a '?' or '%' in the name would end or change it.
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    return uri + "&immutable=1" if _cannot_share(path) else uri


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
        kind = UnreachableError if _passes(error) else StorageError
        raise kind(f"database {shown(url)}: {meaning}") from error


def _passes(error: DBAPIError) -> bool:
    """Whether a server's error may be gone in a moment; SQLite waits by itself."""
    if error.orig is None or not isinstance(error, OperationalError | InternalError):
        return False
    state = getattr(error.orig, "sqlstate", "")
    # Without a code no server answered: refused, cut off, or not up yet.
    return error.connection_invalidated or state is None or state.startswith(_PASSING)
