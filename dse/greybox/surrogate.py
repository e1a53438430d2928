"""A Gaussian process for the error of a network from a few dozen trainings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from dse.errors import StudyError
from dse.greybox.knobs import Floats

Scale: TypeAlias = Literal["logit", "log", "linear"]
# Hyperparameters are fitted to at most this many trainings, and anew when they grow by a tenth.
MOST_FITTED = 150
GROWTH = 1.1
_LEAST_ERROR = 1e-4
_FIT_STEPS = 30
# Of the logit or logarithm: how far beyond the worst error that counts compression halves a step.
_BEYOND = 0.5
_MOST_BEYOND = 10.0


def milestone(trainings: int) -> int:
    """The largest of 4, 5, 6, ... (each a tenth above the last) that is reached."""
    reached = min(trainings, 4)
    while (following := max(reached + 1, math.floor(reached * GROWTH))) <= trainings:
        reached = following
    return reached


class _Map(GaussianProcessRegressor):  # type: ignore[misc]
    """scikit-learn's process, fitted to the posterior mode instead of the likelihood's.

    The prior of the length scales is log-normal with a mode that grows with the square root of the
    number of features (Hvarfner, Hellsten & Nardi, ICML 2024): in many dimensions and with few
    trainings, no feature is believed to matter much until the data say so.
    """

    def log_marginal_likelihood(
        self, theta: Any = None, eval_gradient: bool = False, clone_kernel: bool = True
    ) -> Any:
        """Of the data and, added, the log density of the prior at theta."""
        found = super().log_marginal_likelihood(theta, eval_gradient, clone_kernel)
        if theta is None:
            return found
        mean, deviation = _prior(len(theta) - 2)
        away = (theta - mean) / deviation
        density = -0.5 * float(away @ away)
        if not eval_gradient:
            return found + density
        return found[0] + density, found[1] - away / deviation


class _Conditioned(GaussianProcessRegressor):  # type: ignore[misc]
    """The process at given hyperparameters: nobody asks for its likelihood, a second Cholesky."""

    def log_marginal_likelihood(self, *_: Any, **__: Any) -> float:
        """Not computed."""
        return float("nan")


def _prior(features: int) -> tuple[Floats, Floats]:
    """Of log amplitude, log length scales and log noise, for standardized values."""
    scale = math.sqrt(2) + 0.5 * math.log(features) - 1.5
    mean = np.array([0.0, *[scale] * features, math.log(1e-2)])
    return mean, np.array([1.0, *[0.7] * features, 1.5])


def _limited(objective: Any, start: Floats, bounds: Floats) -> tuple[Floats, float]:
    """L-BFGS-B with few steps: the mode need not be exact."""
    found = minimize(
        objective,
        start,
        jac=True,
        bounds=bounds,
        method="L-BFGS-B",
        options={"maxiter": _FIT_STEPS},
    )
    return found.x, found.fun


def _kernel(theta: Floats | None, features: int) -> Any:
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(
        np.ones(features), (1e-2, 1e3), nu=2.5
    ) + WhiteKernel(1e-2, (1e-6, 1.0))
    return kernel.clone_with_theta(_prior(features)[0] if theta is None else theta)


@lru_cache(maxsize=8)
def _fitted(x: bytes, y: bytes, noise: bytes, features: int) -> Floats:
    """The hyperparameters' mode for rows of float64, given as bytes so that they are remembered."""
    values, variances = np.frombuffer(y), np.frombuffer(noise)
    rows = np.frombuffer(x).reshape(len(values), features)
    process = _Map(_kernel(None, features), alpha=variances + 1e-8, optimizer=_limited)
    return np.asarray(process.fit(rows, values).kernel_.theta)


@dataclass(frozen=True)
class ErrorScale:
    """How an objective is modelled: errors of 0..1 by logit, other values by log or as they are.

    Beyond `worst`, where a design does not count, logits and logarithms are compressed: what is
    hopeless only has to be known as hopeless, and how steeply errors rise there must not shape
    what the process believes of good networks.
    """

    kind: Scale = "logit"
    samples: int | None = None
    worst: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("logit", "log", "linear"):
            raise StudyError(f"scale is '{self.kind}'; allowed: logit, log, linear")

    def check(self, value: float) -> None:
        """Raise StudyError for a value that the scale cannot hold."""
        if (self.kind == "logit" and not 0 <= value <= 1) or (self.kind == "log" and value <= 0):
            allowed = "0 to 1" if self.kind == "logit" else "above 0"
            raise StudyError(
                f"the learned objective gave {value:g} (as an error), but its scale is "
                f"'{self.kind}'; allowed: {allowed}; take scale='linear' for other quantities"
            )

    def forward(self, errors: Floats) -> Floats:
        """Errors as the process sees them."""
        values = self._plain(errors)
        if self._edge is None:
            return values
        beyond = np.maximum(values - self._edge, 0.0)
        return np.minimum(values, self._edge) + _BEYOND * np.log1p(beyond / _BEYOND)

    def back(self, values: Floats) -> Floats:
        """Errors from what the process says."""
        if self._edge is not None:
            beyond = np.minimum(np.maximum(values - self._edge, 0.0) / _BEYOND, _MOST_BEYOND)
            values = np.minimum(values, self._edge) + _BEYOND * np.expm1(beyond)
        if self.kind == "logit":
            return np.asarray(expit(values))
        return np.exp(values) if self.kind == "log" else values

    def variance(self, errors: Floats) -> Floats:
        """Of the estimate on `samples` test samples: binomial, by the delta method on the scale."""
        if self.kind != "logit" or not self.samples:
            return np.zeros(len(errors))
        share = np.clip(errors, 0.5 / self.samples, 1 - 0.5 / self.samples)
        found = 1 / (self.samples * share * (1 - share))
        if self._edge is None:
            return np.asarray(found)
        beyond = np.maximum(self._plain(errors) - self._edge, 0.0)
        return np.asarray(found / (1 + beyond / _BEYOND) ** 2)

    def _plain(self, errors: Floats) -> Floats:
        if self.kind == "logit":
            least = 0.5 / self.samples if self.samples else _LEAST_ERROR
            return np.asarray(logit(np.clip(errors, least, 1 - least)))
        return np.log(errors) if self.kind == "log" else errors

    @cached_property
    def _edge(self) -> float | None:
        """Where compression begins; never on a linear scale, which has no unit of its own."""
        if self.worst is None or self.kind == "linear" or self.worst <= 0:
            return None
        return float(self._plain(np.array([self.worst]))[0])


class ErrorModel:
    """What (n, features) rows with errors (n,) say about other rows.

    Equal data give equal hyperparameters whichever process fits them: they depend on the trainings
    up to the last milestone alone, never on an earlier fit.
    """

    def __init__(self, features: Floats, errors: Floats, scale: ErrorScale) -> None:
        self.scale = scale
        values, variances = scale.forward(errors), scale.variance(errors)
        first = milestone(len(values))
        self._mean = float(values[:first].mean())
        self._unit = float(values[:first].std()) or 1.0
        self._values = (values - self._mean) / self._unit
        self._variances = variances / self._unit**2
        self._features = features
        kept = np.unique(np.linspace(0, first - 1, min(first, MOST_FITTED)).round().astype(int))
        self._theta = _fitted(
            np.ascontiguousarray(features[kept]).tobytes(),
            self._values[kept].tobytes(),
            self._variances[kept].tobytes(),
            features.shape[1],
        )
        self._process = self._conditioned()

    def _conditioned(self) -> Any:
        kernel = _kernel(self._theta, self._features.shape[1])
        process = _Conditioned(kernel, alpha=self._variances + 1e-8, optimizer=None)
        return process.fit(self._features, self._values)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the true value, (n,) each, on the model's scale."""
        mean, deviation = self._process.predict(features, return_std=True)
        noise = self._process.kernel_.k2.noise_level
        deviation = np.sqrt(np.maximum(deviation**2 - noise, 1e-10))
        return mean * self._unit + self._mean, deviation * self._unit

    def errors(self) -> Floats:
        """Expected errors of what was trained or believed, when the noise is taken out, (n,).

        At its own rows the process's mean is the value less the noise's share of the weights.
        """
        noise = self._process.kernel_.k2.noise_level + self._process.alpha
        mean = self._values - noise * self._process.alpha_
        return self.scale.back(mean * self._unit + self._mean)

    def believe(self, features: Floats) -> Floats:
        """Take the predicted means of running trainings for measured; returns them as errors.

        Ginsbourger, Le Riche & Carraro 2010, "kriging believer": the means stay, the uncertainty
        around them shrinks.
        """
        mean, _ = self.predict(features)
        self._features = np.vstack([self._features, features])
        self._values = np.concatenate([self._values, (mean - self._mean) / self._unit])
        self._variances = np.concatenate([self._variances, np.zeros(len(mean))])
        self._process = self._conditioned()
        return self.scale.back(mean)
