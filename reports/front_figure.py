"""The README's figure: accuracy against flash of one study, from its trials.csv.

python reports/front_figure.py reports/fashion-mnist-lenet5/trials.csv docs/front.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dse.pareto import non_dominated

COLOURS = {"native": "#0b6fa4", "native-dsp": "#d1592a", "cmsis-nn": "#2f8f5b"}


def main(source: Path, output: Path) -> None:
    """Read trials, draw, write an SVG that is the same for the same trials."""
    mpl.rcParams.update({"svg.hashsalt": "dse", "font.size": 10, "axes.spines.top": False})
    trials = pd.read_csv(source)
    known = trials[trials["accuracy"].notna()]
    feasible = known[(known["state"] == "complete") & (known["baseline"] != "float32")]
    points = feasible[["accuracy", "flash_bytes"]].to_numpy()
    front = feasible[non_dominated([[1 - a, flash] for a, flash in points])]
    figure, axes = plt.subplots(figsize=(7.6, 3.9), layout="constrained")
    missed = known[known["state"] != "complete"]
    _dots(missed, axes, "#cccccc", "misses the accuracy limit", 14)
    for backend, colour in COLOURS.items():
        _dots(feasible[feasible["backend"] == backend], axes, colour, backend, 26)
    steps = front.sort_values("flash_bytes")
    axes.step(
        steps["flash_bytes"] / 1024, 100 * steps["accuracy"], where="post", color="#444444", lw=1
    )
    for label, marker in (("float32", "D"), ("int8", "s")):
        row = known[known["baseline"] == label]
        axes.scatter(
            row["flash_bytes"] / 1024,
            100 * row["accuracy"],
            marker=marker,
            s=60,
            color="#111111",
            label=f"{label} baseline",
            zorder=3,
        )
    axes.set(xscale="log", xlabel="flash (KiB)", ylabel="validation accuracy (%)")
    axes.set_ylim(bottom=max(100 * known["accuracy"].min(), 100 * feasible["accuracy"].min() - 4))
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(output, metadata={"Date": None})


def _dots(rows: pd.DataFrame, axes: Axes, colour: str, label: str, size: int) -> None:
    rows = rows[rows["baseline"].isna()]
    axes.scatter(
        rows["flash_bytes"] / 1024, 100 * rows["accuracy"], s=size, color=colour, label=label
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
