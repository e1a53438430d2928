"""The figure of docs/grey-box.md: `python benchmarks/search/idea_figure.py docs/grey-box.svg`.

Two costs, three trained networks with two deployments each, and a candidate: the cost points are
coloured by E(u), those that the candidate serves are ringed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from dse.greybox.improvement import Attained, CostPoints

REFERENCE = 0.30
TRAINED = (
    (0.08, ((0.72, 0.55), (0.86, 0.35))),
    (0.14, ((0.45, 0.42), (0.56, 0.24))),
    (0.22, ((0.20, 0.30), (0.33, 0.15))),
)
CANDIDATE = ((0.30, 0.62), (0.42, 0.34))


def main(path: Path) -> None:
    """Draw and save."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "grey-box"
    from matplotlib import pyplot as plt

    points = CostPoints(2, 256)
    attained = Attained(points, REFERENCE)
    for index, (error, deployments) in enumerate(TRAINED):
        attained.add(error, points.served(np.array([deployments]))[0], index)
    served = points.mask(points.served(np.array([CANDIDATE])))[0]
    drawing, axis = plt.subplots(figsize=(6.4, 4.4))
    flash, latency = points.points.T
    shades = axis.scatter(flash, latency, c=attained.error, s=16, cmap="viridis", vmax=REFERENCE)
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "#d55e00", "linewidths": 0.7}
    axis.scatter(flash[served], latency[served], s=42, **ring)
    for error, deployments in TRAINED:
        axis.plot(*np.array(deployments).T, "ks")
        axis.annotate(f"{error:.0%} error", deployments[0], (6, 6), textcoords="offset points")
    axis.plot(*np.array(CANDIDATE).T, "D", color="#d55e00", label="a candidate's two deployments")
    axis.plot([], [], "ks", label="trained networks, two deployments each")
    axis.set(xlabel="log flash (share of the box)", ylabel="log latency", xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left", fontsize=8, framealpha=0.95)
    drawing.colorbar(shades, label="E(u): smallest error found so far")
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
