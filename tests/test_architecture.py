"""The house holds: imports run downwards only, and what must start fast never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "dse"

# Lowest first; a module may import from its own floor and those below (docs/architecture.md).
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "bounded"),
    ("units", "trial"),
    ("filter",),
    ("pareto", "graph.ir", "graph.plan", "graph.numerics", "graph.blocks", "graph.code_book"),
    ("graph.channels", "graph.factor", "graph.entry"),
    ("graph.interpolation", "graph.softmax"),
    (
        "graph.archive",
        "graph.quantize",
        "graph.equalize",
        "graph.tflite_file",
        "graph.tflite_reader",
        "graph.compact",
        "firmware.tflite",  # written from the graph alone; Vela reads it, below `firmware`
        "firmware.flatbuffer",
    ),
    ("targets", "greybox"),
    ("greybox",),
    ("candidate",),
    ("graph.resources",),
    ("graph.allocate",),
    ("widths", "knobs", "space_section"),
    ("constraints", "space", "samplers", "study_yaml"),
    ("study",),
    ("problem",),
    ("draws", "stopping", "search_costs"),
    ("graph.tracer", "graph.layers", "graph.operators", "graph.trace", "graph.execute"),
    ("graph.ranges", "graph.correct"),
    ("workloads",),
    ("compress",),
    ("firmware",),
    ("evaluation",),
    ("evaluate",),
    (
        "rows",
        "schema",
        "migrations",
        "database",
        "optuna_tables",
        "artifacts",
        "artifact_store",
        "front",
    ),
    ("leases", "summaries"),
    ("turn",),
    ("storage", "provenance", "rejudge", "study_archive"),
    ("finding",),
    ("audit_optuna",),
    ("transfer", "audit", "backup"),
    ("proposer", "heartbeat", "workers", "firmware.bundle", "firmware.verify"),
    ("knowledge", "ray_executor"),
    ("explorer",),
    ("prover", "samples"),
    ("launch", "rescore"),
    ("overview",),
    ("choose",),
    (
        "report",
        "tables",
        "progress",
        "catalog",
        "explain",
        "doctor",
        "battery",
        "estimate",
        "calibrate",
    ),
    ("browse", "compare"),
    ("export", "proof", "confusion", "terminal", "options", "fit_matrix"),
    (
        "target_commands",
        "rescore_command",
        "deciding_commands",
        "database_commands",
        "worker_commands",
    ),
    ("cli",),
)
RANK = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def rank(module: str) -> int:
    parts = module.split(".")[1:]
    for size in range(len(parts), 0, -1):
        if ".".join(parts[:size]) in RANK:
            return RANK[".".join(parts[:size])]
    if parts in ([], ["graph"]):
        return 0
    raise AssertionError(f"{module} has no floor; put it into FLOORS and docs/architecture.md")


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT.parent).with_suffix("").parts)
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imports(path: Path) -> set[str]:
    """Every dse module that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dse")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dse"):
            assert node.module is not None
            exact = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name, _ in modules()}
            found |= (exact & known) or {node.module}
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value).split("/")[-1])
def test_imports_run_downwards(module: str, path: Path) -> None:
    for other in imports(path):
        assert rank(other) <= rank(module), f"{module} reaches up to {other}"


@pytest.mark.parametrize(
    "module",
    [
        "pareto",
        "targets",
        "storage",
        "report",
        "study",
        "problem",
        "cli",
        "tables",
        "catalog",
        "estimate",
        "rescore",
        "choose",
        "explorer",
        "workers",
        "proof",
        "browse.server",
    ],
)
def test_browsing_and_estimating_load_no_torch(module: str) -> None:
    code = f"import sys, dse.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    long = {
        str(path): count
        for path in [*ROOT.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long
