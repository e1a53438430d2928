"""A problem with many knobs: 12 layers, each with a pruning ratio and weight bits, 12 targets.

Errors and costs are formulas, so that true errors are known and any network can be "trained". The
formula has what makes real ones hard: layers of very different sensitivity, pairs and triples that
hurt together, a cliff where capacity runs out, and noise on every training.

    python benchmarks/search/synthetic.py      # searches the best known fronts with true errors
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from problem import Params, SearchProblem
from scipy.special import expit, logit

from dse.greybox.costs import CostTable
from dse.greybox.improvement import Attained, CostPoints
from dse.greybox.knobs import Knobs
from dse.greybox.proposals import Proposals
from dse.pareto import Points

LAYERS = 12
RATIOS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
BITS = (2, 4, 8)
PRUNE = [f"prune.{layer:02d}" for layer in range(LAYERS)]
WIDTH = [f"bits.{layer:02d}" for layer in range(LAYERS)]
NOISE = 0.1  # standard deviation of a training's result, on the logit
WORST_ERROR = 0.3
BEST_FILE = Path(__file__).parent / "data" / "syn.json"
FORMULA = 7  # the seed of the sensitivities of `syn`
OTHER_FORMULAS = (8, 9, 10)
# Cycles a multiply-accumulate by backend and bits, code bytes by backend.
_BACKENDS = {
    "plain": ({2: 3.6, 4: 3.2, 8: 2.9}, 6_000),
    "packed": ({2: 2.4, 4: 2.2, 8: 2.0}, 14_000),
    "simd": ({2: 1.9, 4: 1.3, 8: 0.9}, 30_000),
}
# Clock (Hz), active power (W), RAM (B), flash (B).
_BOARDS = {
    "slow": (64e6, 0.018, 64_000, 256_000),
    "middle": (120e6, 0.045, 128_000, 512_000),
    "fast": (216e6, 0.26, 256_000, 512_000),
    "fastest": (480e6, 0.62, 512_000, 1_024_000),
}
DEADLINE_S = 0.25


class Formula:
    """Errors and costs of (n) networks given as ratios and bits by layer."""

    def __init__(self, seed: int = FORMULA, noise: float = NOISE) -> None:
        self.noise = noise
        source = np.random.default_rng(seed)
        # A network that narrows in space and widens in channels.
        self.channels = np.array([16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96, 96])
        self.pixels = np.array([1024, 1024, 256, 256, 256, 256, 64, 64, 64, 64, 16, 16])
        self.prune_sensitivity = np.exp(source.normal(-1.9, 0.8, LAYERS))
        self.bits_sensitivity = np.exp(source.normal(-1.7, 0.8, LAYERS))
        self.pairs = source.permutation(LAYERS)[:8].reshape(4, 2)
        self.triples = source.permutation(LAYERS)[:6].reshape(2, 3)
        self.pair_strength = source.uniform(0.2, 0.6, 4)
        self.triple_strength = source.uniform(0.3, 0.8, 2)

    def _arrays(self, networks: Sequence[Params]) -> tuple[Points, Points]:
        kept = [[1 - RATIOS[network[name]] for name in PRUNE] for network in networks]
        bits = [[network[name] for name in WIDTH] for network in networks]
        return (
            np.array(kept, dtype=np.float64).reshape(-1, LAYERS),
            np.array(bits, dtype=np.float64).reshape(-1, LAYERS),
        )

    def true(self, networks: Sequence[Params]) -> Points:
        """Errors without noise, (n,)."""
        kept, bits = self._arrays(networks)
        removed, coarse = -np.log(kept), 4 * (2.0**-bits - 2.0**-8)
        hurt = self.prune_sensitivity * removed**1.5 + self.bits_sensitivity * coarse
        harm = removed / -np.log(0.25) + coarse
        total = hurt.sum(axis=1)
        for strength, pair in zip(self.pair_strength, self.pairs, strict=True):
            total = total + strength * harm[:, pair].prod(axis=1)
        for strength, triple in zip(self.triple_strength, self.triples, strict=True):
            total = total + strength * harm[:, triple].prod(axis=1)
        size = (self._weights(kept) * bits).sum(axis=1)
        whole = (self._weights(np.ones((1, LAYERS))) * 8).sum()
        cliff = 1.2 * np.maximum(0, np.log(0.06 * whole / size))
        return np.asarray(expit(logit(0.06) + total + cliff))

    def measured(self, network: Params) -> float:
        """One training: the true error with noise that belongs to the network."""
        text = json.dumps(sorted(network.items()))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        noise = self.noise * np.random.default_rng(seed).standard_normal()
        return float(expit(logit(self.true([network])[0]) + noise))

    def _weights(self, kept: Points) -> Points:
        before = np.hstack([np.ones((len(kept), 1)), kept[:, :-1]])
        inputs = np.array([3, *self.channels[:-1]])
        return np.asarray(9 * before * inputs * kept * self.channels)

    def costs(self, networks: Sequence[Params], deployments: Sequence[Params]) -> Points:
        """Flash (B), latency (s), energy (J): (n, targets, 3), nan where a limit is missed."""
        kept, bits = self._arrays(networks)
        weights = self._weights(kept)
        constants = (weights * bits / 8).sum(axis=1) + (8 * kept * self.channels).sum(axis=1)
        arena = (kept * self.channels * self.pixels).max(axis=1) * 1.6 + 4_000
        found = np.full((len(networks), len(deployments), 3), np.nan)
        for column, deployment in enumerate(deployments):
            board, backend = deployment["target"].split("/")
            cycles, code = _BACKENDS[backend]
            clock, power, ram, flash_limit = _BOARDS[board]
            each = np.select([bits == b for b in BITS], [cycles[b] for b in BITS])
            latency = ((weights * self.pixels * each).sum(axis=1) + 40_000) / clock
            flash = constants + code
            able = (flash <= flash_limit) & (arena <= ram) & (latency <= DEADLINE_S)
            values = np.column_stack([flash, latency, latency * power])
            found[:, column] = np.where(able[:, None], values, np.nan)
        return found


@dataclass(frozen=True)
class SyntheticErrors:
    """A formula as a table of trainings."""

    formula: Formula

    def measured(self, network: Params) -> float:
        """With noise."""
        return self.formula.measured(network)

    def true(self, networks: Sequence[Params]) -> Points:
        """Without noise."""
        return self.formula.true(networks)


def distributions() -> dict[str, BaseDistribution]:
    """Twelve ratios (as levels), twelve bit widths, one of twelve targets."""
    found: dict[str, BaseDistribution] = {}
    for prune, width in zip(PRUNE, WIDTH, strict=True):
        found[prune] = IntDistribution(0, len(RATIOS) - 1)
        found[width] = CategoricalDistribution(BITS)
    targets = [f"{board}/{backend}" for board in _BOARDS for backend in _BACKENDS]
    found["target"] = CategoricalDistribution(targets)
    return found


def features(network: Params) -> dict[str, list[float]]:
    """Log kept share and 2^-bits of every layer."""
    kept = [math.log(1 - RATIOS[network[name]]) for name in PRUNE]
    return {"kept": kept, "bits": [2.0 ** -network[name] for name in WIDTH]}


@cache
def synthetic(formula: int = FORMULA, noise: float = NOISE) -> SearchProblem:
    """The problem, scored against the best known front (`python synthetic.py` finds it)."""
    stored = json.loads(BEST_FILE.read_text()) if BEST_FILE.exists() else {}
    errors = SyntheticErrors(Formula(formula, noise))
    low, high = np.array([1.1e4, 4e-3, 5e-4]), np.array([3.2e5, DEADLINE_S, 6e-2])
    return SearchProblem(
        "syn",
        distributions(),
        "target",
        errors,
        errors.formula.costs,
        low,
        high,
        WORST_ERROR,
        float(stored.get(str(formula), 1.0)),
        features,
    )


def search_front(problem: SearchProblem, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Networks of the best front that a long evolution with true errors finds.

    Parents are the networks that are best at one of 8,192 cost points.
    """
    space = {n: d for n, d in problem.distributions.items() if n != problem.deployment}
    knobs = Knobs(space)
    table = CostTable(knobs, problem.deployments, problem.costs, True, np.ones(3))
    proposals, source = Proposals(knobs, table, seed), np.random.default_rng(seed)
    attained = Attained(CostPoints(3, 8192, seed), WORST_ERROR)
    rows = np.zeros((0, len(knobs)))
    fresh = np.vstack([proposals.ends(), proposals.spread(source, 4000)])
    for _ in range(rounds):
        networks = knobs.designs(fresh)
        costs = problem.normalised(problem.costs(networks, problem.deployments))
        served = attained.points.served(costs)
        owners = len(rows) + np.arange(len(fresh))
        attained.take(problem.errors.true(networks), served, owners)
        rows = np.vstack([rows, fresh])
        parents = rows[attained.front]
        fresh = np.vstack(
            [proposals.mutated(source, parents, 1500), proposals.crossed(source, parents, 500)]
        )
    return knobs.designs(rows[attained.front])


def main() -> None:
    """Store the hypervolume of the best front of every formula that is known from now on."""
    known = json.loads(BEST_FILE.read_text()) if BEST_FILE.exists() else {}
    for formula in (FORMULA, *OTHER_FORMULAS):
        found = round(best_hypervolume(formula), 6)
        print(f"formula {formula}: {found}", flush=True)
        known[str(formula)] = max(found, known.get(str(formula), 0.0))
        BEST_FILE.write_text(json.dumps(known) + "\n", encoding="utf-8")


def best_hypervolume(formula: int) -> float:
    """Of three searches together."""
    problem = replace(synthetic(formula), best=1.0)
    networks = [network for seed in range(3) for network in search_front(problem, 250, seed)]
    costs = problem.costs(networks, problem.deployments)
    errors = np.repeat(problem.errors.true(networks), costs.shape[1])
    return problem.score(errors, costs.reshape(-1, costs.shape[2]))


if __name__ == "__main__":
    main()
