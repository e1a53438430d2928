"""A PostgreSQL server of the tests' own: on loopback, as an ordinary user, gone afterwards."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

_NUMBERS = itertools.count()
# Nothing of a test survives a crash of the machine, so nothing waits for the disk.
_SETTINGS = (
    "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"
    "max_connections = 150\nshared_buffers = 32MB\nlog_timezone = 'UTC'\n"
)


def binaries() -> Path:
    """The folder of Debian's package, or of whatever `postgres` is on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    on_path = shutil.which("postgres")
    if not found and on_path is None:
        raise FileNotFoundError("no PostgreSQL server: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


def _version(path: Path) -> int:
    name = path.parts[4]
    return int(name) if name.isdigit() else 0


class Server:
    """Runs in a temporary folder; `stop` and `start` are a restart, `kill` a power cut."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", settings: str = "") -> None:
        self.folder, self.host, self._binaries = folder, host, binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.user = self._user()
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if self.user:
            shutil.chown(folder, self.user)
            shutil.chown(data, self.user)
        self._run("initdb", "-D", data, "-U", "dse", "-A", "trust", "-E", "UTF8", "--no-sync")
        text = f"port = {self.port}\nlisten_addresses = '{host}'\n"
        text += f"unix_socket_directories = '{folder}'\n{_SETTINGS}{settings}"
        with (data / "postgresql.conf").open("a") as file:
            file.write(text)
        with (data / "pg_hba.conf").open("a") as file:
            file.write("host all all samenet trust\n")

    @staticmethod
    def _user() -> str | None:
        """The server refuses to be the superuser's."""
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def _run(self, name: str, *arguments: object) -> None:
        subprocess.run(
            [self._binaries / name, *map(str, arguments)],
            check=True,
            capture_output=True,
            user=self.user,
            cwd=self.folder,
        )

    def start(self, *before: str) -> None:
        """Start, and wait until it answers; `before` is put before the command."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*before, str(self._binaries / "postgres"), "-D", str(self.folder / "data")],
                stdout=log,
                stderr=log,
                user=None if before else self.user,
                cwd=self.folder,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError((self.folder / "log").read_text())

    def stop(self) -> None:
        """An orderly shutdown that waits for nobody."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """All its processes at once, without a word."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def dsn(self, database: str) -> str:
        """The address as psycopg takes it; by the socket, which needs no network."""
        return f"host={self.folder} port={self.port} user=dse dbname={database}"

    def url(self, database: str) -> str:
        """The address as `--storage` takes it."""
        return f"postgresql://dse@{self.host}:{self.port}/{database}"

    def new_database(self, template: str = "template0") -> str:
        """A database of its own, copied from another one; its name."""
        name = f"dse{os.getpid()}_{next(_NUMBERS)}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop(self, database: str) -> None:
        """Delete a database, whoever is connected."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{database}" WITH (FORCE)')


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(host: str = "127.0.0.1", settings: str = "") -> Iterator[Server]:
    """A server while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="dse-postgresql-") as name:
        server = Server(Path(name), host, settings)
        try:
            server.start()
            yield server
        finally:
            server.stop()
