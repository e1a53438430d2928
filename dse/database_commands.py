"""The verbs about a whole database: doctor, backup, and studies that move to another one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dse.errors import StudyError
from dse.options import ArtifactsOption, JsonOption, StorageOption
from dse.tables import show

if TYPE_CHECKING:
    from dse.doctor import Check
    from dse.finding import Finding

ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]


def doctor(
    storage: StorageOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend the database; asks before it does.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the installation, data, cache and database; says what to do about what is missing.

    Repairs never delete what was measured.
    """
    from dse.doctor import checks

    if repair and storage is None:
        raise StudyError("--repair needs the database: give --storage URL")
    form = "json" if as_json else "table"
    found = [] if repair else list(checks())
    found += _database(storage) if storage else []
    columns = ["what", "state", "found", "what_to_do"]
    show([check.row() for check in found], columns, form)  # type: ignore[arg-type]
    broken = any(check.state == "broken" for check in found)
    if repair and storage:
        broken = _repaired(storage, yes)
    if broken:
        raise typer.Exit(1)


def backup(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    storage: StorageOption = None,
    force: ForceOption = False,
) -> None:
    """Copy a SQLite database while studies run in it; PostgreSQL: prints the command."""
    from dse.backup import backup as run
    from dse.launch import DEFAULT_STORAGE

    size = run(storage or DEFAULT_STORAGE, file, force=force)
    print(f"wrote {file} ({size / 2**20:.1f} MiB); open it with --storage sqlite:///{file}")


def export_study(
    name: Annotated[str, typer.Argument(help="Name of a study.")],
    file: Annotated[Path, typer.Argument(help="File to write, such as study.dse.")],
    storage: StorageOption = None,
    force: ForceOption = False,
) -> None:
    """Write a study with all its trials and artifacts to one file, for another database."""
    from dse.launch import DEFAULT_STORAGE
    from dse.storage import Storage
    from dse.transfer import export_study as run

    with Storage.open_readonly(storage or DEFAULT_STORAGE) as opened:
        done = run(opened, name, file, force=force)
    size = f"{done.size_bytes / 2**20:.1f} MiB"
    print(f"wrote {file}: {done.trials} trials, {done.artifacts} artifacts, {size}")
    for sentence in done.left_out:
        print(f"left out: {sentence}")
    print(f"read it with: dse import-study {file} --storage URL")


def import_study(
    file: Annotated[Path, typer.Argument(help="File that dse export-study wrote.")],
    storage: StorageOption = None,
    name: Annotated[str | None, typer.Option(help="Instead of the study's own name.")] = None,
    artifacts: ArtifactsOption = None,
) -> None:
    """Bring a study into a database; trials of the same study are merged by candidate."""
    from dse.launch import DEFAULT_STORAGE
    from dse.storage import Storage
    from dse.transfer import import_study as run

    with Storage(storage or DEFAULT_STORAGE, artifacts=artifacts) as opened:
        done = run(opened, file, name)
    words = {
        "added": "added",
        "completed": "gave a result to a trial that had none here",
        "known": "known here already",
        "running": "run here now",
        "unfinished": "have no result in the file",
    }
    counts = {key: count for key, count in asdict(done).items() if key in words and count}
    told = ", ".join(f"{count} {words[key]}" for key, count in counts.items())
    print(f"study '{done.study}': {told or 'no trials in the file'}")


def _database(url: str) -> list[Check]:
    """What there is, then every finding as a check."""
    from dse.doctor import Check, database_check

    first = database_check(url)
    if first.state == "broken":
        return [first]
    found = [first]
    for finding in _audit(url):
        what = f"study {finding.study}" if finding.study else "database"
        state = "broken" if finding.kind == "broken" else "note"
        repair = f"dse doctor --repair: {finding.repair}" if finding.repair else ""
        found.append(Check(what, state, finding.found, repair))  # type: ignore[arg-type]
    return found


def _audit(url: str) -> list[Finding]:
    from dse.audit import audit
    from dse.storage import Storage

    with Storage.open_readonly(url) as opened:
        return audit(opened)


def _repaired(url: str, yes: bool) -> bool:
    """Mend with consent; whether something is broken after it."""
    from dse.audit import audit, repair
    from dse.storage import Storage

    findings = _audit(url)
    mendable = [finding for finding in findings if finding.mend is not None]
    if not mendable:
        print("nothing to repair" if not findings else "nothing of this can be repaired here")
        return any(finding.kind == "broken" for finding in findings)
    for finding in mendable:
        print(f"would {finding.repair}: {finding.found}")
    if not yes and not typer.confirm("repair?"):
        print("nothing was changed")
        return any(finding.kind == "broken" for finding in findings)
    with Storage(url) as opened:
        for sentence in repair(opened, mendable):
            print(f"done: {sentence}")
        left = audit(opened)
    for finding in left:
        print(f"left: {finding.found}")
    return any(finding.kind == "broken" for finding in left)


def register(app: typer.Typer) -> None:
    """Add the verbs to the `dse` command."""
    app.command()(doctor)
    app.command()(backup)
    app.command(name="export-study")(export_study)
    app.command(name="import-study")(import_study)
