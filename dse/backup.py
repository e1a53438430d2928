"""A copy of a database while studies run in it."""

from __future__ import annotations

import shlex
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL

from dse.database import parse_url, readonly_uri, sqlite_path
from dse.errors import StorageError


def backup(url: str, target: Path, *, force: bool = False) -> int:
    """Copy a SQLite database to a new file, as it is at one moment; bytes of the copy.

    Writers go on meanwhile (https://www.sqlite.org/backup.html; in write-ahead mode a reader
    blocks none). The copy is checked before it takes its name. Raises StorageError for PostgreSQL,
    with the command that copies it, when the target exists, or nothing can be read or written.
    """
    parsed = parse_url(url)
    source = sqlite_path(parsed)
    if source is None:
        command = dump_command(parsed, target)
        raise StorageError(f"PostgreSQL has its own tool for a copy while studies run: {command}")
    if not source.is_file():
        raise StorageError(f"there is no database at {source}; check the storage URL")
    if target.exists() and not force:
        raise StorageError(f"{target} exists already; choose another name or give --force")
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=target.name, delete=False
        ) as part:
            temporary = Path(part.name)
        try:
            _copy(source, temporary)
            temporary.replace(target)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror or error})") from error
    except sqlite3.Error as error:
        raise StorageError(f"{source} cannot be copied to {target}: {error}") from error
    return target.stat().st_size


def dump_command(url: URL, target: Path) -> str:
    """What copies a PostgreSQL database; the password comes from ~/.pgpass or PGPASSWORD."""
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    shown = shlex.quote(plain.render_as_string())
    return f"pg_dump --format=custom --file={shlex.quote(str(target))} {shown}"


def _copy(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(readonly_uri(source), uri=True, timeout=60)) as original,
        closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)  # all pages in one step: later writes cannot start it anew
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise StorageError(f"{source} is damaged ({found}); 'dse doctor' says what of it is whole")
