"""A study as one file that moves between databases: JSON texts and artifacts in a ZIP archive.

    manifest.json       format, version, who wrote it, and the SHA-256 of every other member
    study.json          the row of dse_studies
    trials.jsonl        one row of dse_evaluations a line, with the artifacts of the trial by kind
    fronts.jsonl        one row of dse_fronts a line
    artifacts/<SHA-256> the bytes

Nothing in it is run, unpacked to a path, or believed: hashes, names and types are checked first.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse import rows
from dse.errors import DseError, StorageError
from dse.rows import FrontChange, StudyRecord
from dse.trial import Trial

FORMAT = "dse study"
VERSION = 1
# A file that claims more than this when unpacked is refused before anything is read.
MAX_BYTES = 16 * 2**30
_TEXTS = ("study.json", "trials.jsonl", "fronts.jsonl")
_ARTIFACT = re.compile(r"artifacts/([0-9a-f]{64})")
_STUDY_KEYS = ("optuna_study_id",)
_TRIAL_KEYS = ("study_id", "optuna_trial_id")


@dataclass(frozen=True)
class StudyArchive:
    """What one file holds. `artifacts` are SHA-256 by kind, by the trial's number."""

    record: StudyRecord
    trials: Sequence[Trial]
    fronts: Sequence[FrontChange]
    artifacts: Mapping[int, Mapping[str, str]]
    path: Path

    def blob(self, digest: str) -> bytes:
        """The bytes of an artifact, checked again."""
        with _opened(self.path) as archive:
            return _checked(archive, f"artifacts/{digest}", digest, self.path)


def write_archive(
    path: Path,
    record: StudyRecord,
    trials: Sequence[Trial],
    fronts: Sequence[FrontChange],
    artifacts: Mapping[int, Mapping[str, str]],
    blobs: Iterator[tuple[str, bytes]],
    made_by: Mapping[str, str],
) -> None:
    """Write a study to one file, whole or not at all.

    `artifacts` are SHA-256 by kind, by the trial's number; `blobs` SHA-256 and bytes, once each.
    One that `blobs` does not give is left out. Raises StorageError when the file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as part:
            temporary = Path(part.name)
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                digests = _write_blobs(archive, blobs)
                kept = {n: _kept(kinds, digests) for n, kinds in artifacts.items()}
                texts = {
                    "study.json": _line(_without(rows.study_row(record, 0), _STUDY_KEYS)),
                    "trials.jsonl": "".join(_trial_line(t, kept.get(t.number, {})) for t in trials),
                    "fronts.jsonl": "".join(_line(_front_row(change)) for change in fronts),
                }
                _write_texts(archive, record.name, texts, digests, made_by)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error})") from error


def read_archive(path: Path) -> StudyArchive:
    """The study of a file, every hash checked.

    Raises StorageError when it is no such file, is damaged, or a newer dse wrote it.
    """
    with _opened(path) as archive:
        digests = _manifest(archive, path)
        texts = {name: _checked(archive, name, digests[name], path).decode() for name in _TEXTS}
        for name in digests:
            if name not in _TEXTS:
                _checked(archive, name, digests[name], path)
    with _whole(path):
        found = [json.loads(line) for line in texts["trials.jsonl"].splitlines()]
        kinds = {int(row["number"]): dict(row.pop("artifacts")) for row in found}
        _check_links(kinds, digests)
        return StudyArchive(
            rows.study_record(json.loads(texts["study.json"])),
            [rows.trial_of(_whole_row(row)) for row in found],
            [_front(json.loads(line)) for line in texts["fronts.jsonl"].splitlines()],
            kinds,
            path,
        )


def _write_blobs(archive: zipfile.ZipFile, blobs: Iterator[tuple[str, bytes]]) -> dict[str, str]:
    """SHA-256 by member."""
    digests = {}
    for digest, blob in blobs:
        archive.writestr(f"artifacts/{digest}", blob)
        digests[f"artifacts/{digest}"] = digest
    return digests


def _write_texts(
    archive: zipfile.ZipFile,
    study: str,
    texts: Mapping[str, str],
    digests: Mapping[str, str],
    made_by: Mapping[str, str],
) -> None:
    for name, text in texts.items():
        archive.writestr(name, text)
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "study": study,
        "made_by": dict(made_by),
        "sha256": {**digests, **hashes},
    }
    archive.writestr("manifest.json", json.dumps(manifest, indent=2))


def _kept(kinds: Mapping[str, str], digests: Mapping[str, str]) -> dict[str, str]:
    return {kind: digest for kind, digest in kinds.items() if f"artifacts/{digest}" in digests}


def _trial_line(trial: Trial, artifacts: Mapping[str, str]) -> str:
    row = _without(rows.evaluation_row(trial, 0, 0), _TRIAL_KEYS)
    return _line(row | {"artifacts": dict(artifacts)})


def _whole_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A trial's row with None in columns that came after it was written."""
    known = {column.name: None for column in rows.TRIAL_COLUMNS}
    newer = sorted(set(row) - set(known))
    if newer:
        raise StorageError(f"a newer dse wrote it: {newer[0]} is not known here")
    for column in rows.TRIAL_COLUMNS:
        value, kind = row.get(column.name), column.type.python_type
        if value is not None and not isinstance(value, (int, float) if kind is float else kind):
            raise StorageError(f"{column.name} is {value!r}, which is no {kind.__name__}")
    return {**known, **row}


def _front_row(change: FrontChange) -> dict[str, Any]:
    return _without(rows.front_row(0, change), ("study_id",))


def _front(row: Mapping[str, Any]) -> FrontChange:
    members = tuple(int(number) for number in json.loads(row["members_json"]))
    return FrontChange(int(row["number"]), float(row["hypervolume"]), members)


def _without(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise StorageError(
            f"there is no file {path}; write one with dse export-study NAME {path}"
        ) from error
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise StorageError(f"{path} is not a whole export of a study ({error})") from error


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Whatever else a text can have wrong is one sentence."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{path} cannot be imported: {error}") from error
    except (DseError, KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise StorageError(f"{path} is not a whole export of a study ({what})") from error


def _manifest(archive: zipfile.ZipFile, path: Path) -> Mapping[str, str]:
    """SHA-256 by member; the archive has these members and no others."""
    names = [info.filename for info in archive.infolist()]
    size = sum(info.file_size for info in archive.infolist())
    if "manifest.json" not in names:
        raise StorageError(f"{path} is not an export of a study; write one with dse export-study")
    if size > MAX_BYTES:
        raise StorageError(
            f"{path} would unpack to {size / 2**30:.0f} GiB; allowed: {MAX_BYTES >> 30} GiB"
        )
    with _whole(path):
        manifest = json.loads(archive.read("manifest.json"))
        found = str(manifest["format"]), manifest["version"]
        digests = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
    if found[0] != FORMAT:
        raise StorageError(f"{path} holds '{found[0]}', not '{FORMAT}'")
    if found[1] != VERSION:
        raise StorageError(
            f"{path} has format version {found[1]}, this dse reads {VERSION}: a newer dse wrote "
            "it; upgrade with pip install --upgrade dse"
        )
    if sorted(names) != sorted([*digests, "manifest.json"]) or not {*_TEXTS} <= set(digests):
        raise StorageError(f"{path} has other members than its manifest says; export it again")
    return digests


def _checked(archive: zipfile.ZipFile, name: str, digest: str, path: Path) -> bytes:
    match = _ARTIFACT.fullmatch(name)
    content = archive.read(name)
    expected = match[1] if match else digest
    if hashlib.sha256(content).hexdigest() != expected or (not match and name not in _TEXTS):
        raise StorageError(f"{path}: {name} is damaged; export the study again")
    return content


def _check_links(kinds: Mapping[int, Mapping[str, str]], digests: Mapping[str, str]) -> None:
    for number, found in kinds.items():
        for kind, digest in found.items():
            if f"artifacts/{digest}" not in digests:
                raise StorageError(f"the {kind} of trial {number} is missing; export it again")
