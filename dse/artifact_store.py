"""Where artifacts lie when not in the database: a folder or an object store, through fsspec.

An object's name is the SHA-256 of its bytes, so writing twice is the same as once, and what is
read can be checked. Credentials come from the environment, as the store's own tools take them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from dse.errors import StorageError, nearest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

VARIABLE = "DSE_ARTIFACTS"
_HINT = 'pip install "dse[artifacts]"'
_EXAMPLES = "write file:///srv/dse or s3://bucket/folder"
MISSING, DAMAGED = "missing", "damaged: its bytes are not those stored"
# What a URL out of a database may make this process talk to.
SCHEMES = ("file", "memory", "s3", "gs", "az", "abfs")


def asked_store(given: str | None = None) -> str | None:
    """The URL of the store that was asked for: by option, else by environment; None for neither.

    Raises StorageError when it is no URL of a store.
    """
    url = given or os.environ.get(VARIABLE) or None
    return None if url is None else _clean(url)


class LostError(StorageError):
    """An object that is not there, or not as it was written; its store answers all the same."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class ArtifactStore:
    """Objects by SHA-256 under one URL. Raises StorageError for whatever it cannot do."""

    def __init__(self, url: str) -> None:
        self.url = _clean(url)
        with self._sentences("cannot be opened"):
            self._files, self._root = _opened(self.url)

    def put(self, blob: bytes) -> str:
        """Write an object, unless it is there already; its SHA-256."""
        digest = hashlib.sha256(blob).hexdigest()
        place = self._place(digest)
        with self._sentences("cannot be written"):
            if self._size(place) == len(blob):
                return digest
            if "file" not in _protocols(self._files):
                self._files.pipe_file(place, blob)  # an object store writes whole or not at all
                return digest
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            part = f"{place}.{uuid4().hex}.part"
            try:
                self._files.pipe_file(part, blob)
                self._files.mv(part, place)
            finally:
                if self._files.exists(part):
                    self._files.rm_file(part)
        return digest

    def get(self, digest: str, what: str = "artifact") -> bytes:
        """An object's bytes, checked; `what` is how a message calls it."""
        place = self._place(digest)
        with self._sentences("cannot be read"):
            try:
                blob: bytes = self._files.cat_file(place)
            except FileNotFoundError as error:
                raise LostError(
                    f"the {what} is missing in {self.url} ({digest[:12]}...); bring the file back, "
                    "or evaluate the candidate again",
                    MISSING,
                ) from error
        if hashlib.sha256(blob).hexdigest() != digest:
            raise LostError(
                f"the {what} in {self.url} is damaged: {len(blob)} bytes that are not those stored "
                f"({digest[:12]}...); bring a copy back, or evaluate the candidate again",
                DAMAGED,
            )
        return blob

    def _size(self, place: str) -> int | None:
        try:
            return int(self._files.info(place)["size"])
        except FileNotFoundError:
            return None

    def _place(self, digest: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise StorageError(f"'{digest}' is not the SHA-256 of an artifact")
        return f"{self._root}/{digest[:2]}/{digest}"

    @contextmanager
    def _sentences(self, what: str) -> Iterator[None]:
        """Every library has errors of its own; all mean that the store did not do it."""
        try:
            yield
        except StorageError:
            raise
        except ImportError as error:
            raise StorageError(f"artifact store {self.url} needs {_HINT} ({error})") from error
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(f"artifact store {self.url} {what}: {why}") from error


@lru_cache(maxsize=8)
def find_store(url: str) -> ArtifactStore:
    """The store at a URL, opened once a process."""
    return ArtifactStore(url)


def _clean(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    if not mark or not scheme or not rest.strip("/"):
        raise StorageError(f"'{url}' is no URL of an artifact store; {_EXAMPLES}")
    if scheme not in SCHEMES:
        raise StorageError(f"unknown artifact store '{scheme}://'; {nearest(scheme, SCHEMES)}")
    if "@" in rest.partition("/")[0]:
        raise StorageError(
            f"the URL of a '{scheme}://' artifact store holds credentials; put them into the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
        )
    if "?" in rest or "::" in url:
        raise StorageError(f"the URL of a '{scheme}://' artifact store has options; {_EXAMPLES}")
    return url.rstrip("/")


def _opened(url: str) -> tuple[AbstractFileSystem, str]:
    from fsspec import url_to_fs

    # A kept instance would go on asking the endpoint that the environment named when it was made.
    files, root = url_to_fs(url, skip_instance_cache=True)
    return files, str(root).rstrip("/")


def _protocols(files: Any) -> tuple[str, ...]:
    found = files.protocol
    return (found,) if isinstance(found, str) else tuple(found)
