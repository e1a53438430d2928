"""Cost tables of two networks on all targets; DSE_RENEW_GOLDEN=1 writes them anew.

DSE_RENEW_GOLDEN=1 python -m pytest tests/test_targets_golden.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dse.graph.ir import Graph
from dse.targets import cost, reference_graph, targets_for
from dse.trial import COST_METRICS
from tests.test_targets_networks import digits

FOLDER = Path(__file__).parent / "golden"
NETWORKS = {"digits": digits(), "kws": reference_graph("kws")}


def table(graph: Graph) -> str:
    """Value, low and high of every metric on every target, to four digits."""
    lines = ["target,metric,value,low,high"]
    for target in targets_for(clocks="all")[0]:
        found = cost(graph, target)
        for name in COST_METRICS:
            metric = found.metrics[name]
            cells = [
                f"{x:.4g}" if x is not None else "" for x in (metric.value, metric.low, metric.high)
            ]
            lines.append(",".join([target.key, name, *cells]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_are_those_of_the_golden_file(name: str) -> None:
    file, found = FOLDER / f"cost_{name}.csv", table(NETWORKS[name])
    if os.environ.get("DSE_RENEW_GOLDEN") == "1":
        file.write_text(found, "utf-8")
    assert file.read_text("utf-8") == found
