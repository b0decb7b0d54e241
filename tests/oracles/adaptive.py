"""The laws that scale a unit by a bound learnt from its norms: autoclip, zclip, quantile, ema, skip, adagc, adagn.

A rule is one unit's state: ``limit(n)`` takes up a norm that tells something and returns the bound for it.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from tests.oracles.units import (
    ALONG_ROWS,
    INF,
    Arrays,
    Axes,
    Numbers,
    Trajectory,
    cap,
    length,
    scale,
    tells,
)


class Rule(Protocol):
    """A bound that learns."""

    def limit(self, n: float) -> float:
        """Take up a norm, and bound it; infinity lets it pass."""
        ...


def capped(
    trajectory: Trajectory, per: str, p: float, rule: Callable[[], Rule], axes: Axes = ALONG_ROWS
) -> Trajectory:
    """g_u -> g_u min(1, c_u / n_u), each unit with a rule of its own."""
    rules: dict[str, Rule] = defaultdict(rule)

    def coefficients(norms: Numbers, _: dict[str, np.ndarray]) -> Numbers:
        return {unit: cap(n, rules[unit].limit(n)) for unit, n in norms.items()}

    return scale(trajectory, per, p, coefficients, axes)


class Percentile:
    """c = percentile of the last ``window`` norms, this one among them (Seetharaman et al. 2020)."""

    def __init__(self, percentile: float, window: int) -> None:
        self.percentile = percentile
        self.history: deque[float] = deque(maxlen=window)

    def limit(self, n: float) -> float:
        self.history.append(n)
        return float(np.percentile(self.history, self.percentile, method="linear"))


def autoclip(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 10.0,
    per: str = "global",
    p: float = 2.0,
    window: int = 1000,
) -> Trajectory:
    """Seetharaman, Wichern, Pardo, Le Roux 2020: clip to a percentile of the norms so far."""
    if threshold == INF:
        return trajectory
    return capped(trajectory, per, p, lambda: Percentile(threshold, window))


class ZScore:
    """ZClip (Kumar et al. 2025, algorithm 1; zclip.py): a norm that is a spike by its z-score is bounded.

    The first ``warmup`` norms pass; mean and population variance start as theirs. Then z = (n - mean) / (sd + eps), and
    where z > z*: c = mean + z* sd / (z / z*) (adaptive), mean, or mean + z* sd (percentile). Then, from the clipped
    norm: mean = beta mean + (1 - beta) n, var = beta var + (1 - beta) (n - mean)^2 with the new mean.

    Decision: sd = max(sqrt(var), sd_floor * mean) wherever it is used; the variance that is kept has no floor.
    """

    def __init__(
        self, z: float, beta: float, response: str, warmup: int, eps: float, sd_floor: float
    ) -> None:
        self.z, self.beta, self.response = z, beta, response
        self.warmup, self.eps, self.sd_floor = warmup, eps, sd_floor
        self.first: list[float] = []
        self.mean = self.var = math.nan

    def limit(self, n: float) -> float:
        if len(self.first) < self.warmup:
            self.first.append(n)
            self.mean, self.var = float(np.mean(self.first)), float(np.var(self.first))
            return INF
        sd = max(math.sqrt(self.var), self.sd_floor * self.mean)
        z = (n - self.mean) / (sd + self.eps)
        bound = INF
        if z > self.z:
            bound = {
                "adaptive": self.mean + self.z * sd / (z / self.z),
                "mean": self.mean,
                "percentile": self.mean + self.z * sd,
            }[self.response]
        clipped = min(n, bound)
        self.mean = self.beta * self.mean + (1 - self.beta) * clipped
        self.var = self.beta * self.var + (1 - self.beta) * (clipped - self.mean) ** 2
        return bound


def zclip(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 2.5,
    per: str = "global",
    p: float = 2.0,
    beta: float = 0.97,
    response: str = "adaptive",
    warmup_steps: int = 25,
    eps: float = 1e-6,
    sd_floor: float = 0.0,
) -> Trajectory:
    """Kumar et al. 2025: clip the norms whose z-score is above a threshold."""
    if threshold == INF:
        return trajectory
    return capped(
        trajectory,
        per,
        p,
        lambda: ZScore(threshold, beta, response, warmup_steps, eps, sd_floor),
    )


class Quantile:
    """c is this step's bound; then c = max(c exp(-rate (1[n <= c] - gamma)), lowest) (Andrew et al. 2021)."""

    def __init__(self, gamma: float, rate: float, initial: float, lowest: float) -> None:
        self.gamma, self.rate, self.lowest = gamma, rate, lowest
        self.c = initial

    def limit(self, n: float) -> float:
        bound = self.c
        below = 1.0 if n <= bound else 0.0
        self.c = max(bound * math.exp(-self.rate * (below - self.gamma)), self.lowest)
        return bound


def quantile(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 0.5,
    per: str = "global",
    p: float = 2.0,
    rate: float = 0.2,
    initial: float = 0.1,
    lowest: float = 1e-12,
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """Andrew, Thakkar, McMahan, Ramaswamy 2021: a bound that follows the gamma-quantile of the norms."""
    if threshold == INF:
        return trajectory
    return capped(trajectory, per, p, lambda: Quantile(threshold, rate, initial, lowest), axes)


class Mean:
    """c = ratio * ema; ema takes up min(n, c) afterwards, and starts as the first min(n, initial)."""

    def __init__(self, ratio: float, beta: float, initial: float) -> None:
        self.ratio, self.beta, self.initial = ratio, beta, initial
        self.ema: float | None = None

    def limit(self, n: float) -> float:
        if self.ema is None:
            self.ema = min(n, self.initial)
            return self.initial
        bound = self.ratio * self.ema
        self.ema = self.beta * self.ema + (1 - self.beta) * min(n, bound)
        return bound


def ema(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 1.5,
    per: str = "global",
    p: float = 2.0,
    beta: float = 0.99,
    initial: float = INF,
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """Clip to a multiple of the running mean of the clipped norms."""
    if threshold == INF:
        return trajectory
    return capped(trajectory, per, p, lambda: Mean(threshold, beta, initial), axes)


class Sigmas:
    """0 where n > mean + sigmas * sd of the last ``window`` norms before it (OLMo-core skip_step_optimizer.py).

    The standard deviation is the unbiased one, so nothing is skipped before there are two norms, nor before there
    are window // 2. Every norm that tells something enters the history, those of skipped steps too.
    """

    def __init__(self, sigmas: float, window: int) -> None:
        self.sigmas, self.window = sigmas, window
        self.history: deque[float] = deque(maxlen=window)

    def limit(self, n: float) -> float:
        bound = INF
        if len(self.history) >= max(2, self.window // 2):
            highest = np.mean(self.history) + self.sigmas * np.std(self.history, ddof=1)
            bound = 0.0 if n > highest else INF
        self.history.append(n)
        return bound


def skip(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 6.0,
    per: str = "global",
    p: float = 2.0,
    window: int = 128,
) -> Trajectory:
    """OLMo 2 (2025): a step whose norm is an outlier counts as no gradient."""
    if threshold == INF:
        return trajectory
    return capped(trajectory, per, p, lambda: Sigmas(threshold, window))


def adagc(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 1.05,
    per: str = "tensor",
    beta: float = 0.98,
    warmup_steps: int = 100,
    absolute: float = 1.0,
) -> Trajectory:
    """Wang et al. 2025 (AdaGC), algorithm 1, with gamma infinite at the start and zeros ignored.

    At step t < T: h = min(1, absolute / |g|) for every unit, gamma_u = min(gamma_u, h n_u). Afterwards
    h_u = min(1, ratio gamma_u / n_u), gamma_u = beta gamma_u + (1 - beta) h_u n_u.

    Decisions: t counts, from 0, the steps at which the norm of everything tells something, for all units alike; while
    t < T a step at which it is not finite passes whole. A unit whose gamma is still infinite after the warm-up
    (it had no gradient until then) passes at its first norm, and gamma starts as that norm: a mean with infinity in it
    would never bound. Infinity as the ratio is "off" during the warm-up too.
    """
    if threshold == INF:
        return trajectory
    gamma: Numbers = defaultdict(lambda: INF)
    steps = 0

    def coefficients(norms: Numbers, flat: dict[str, np.ndarray]) -> Numbers:
        nonlocal steps
        total = length(np.concatenate([np.zeros(0), *flat.values()]))
        if steps < warmup_steps:
            if not tells(total):
                return {}
            steps += 1
            h = cap(total, absolute)
            for unit, n in norms.items():
                gamma[unit] = min(gamma[unit], h * n)
            return dict.fromkeys(norms, h)
        factors = {unit: cap(n, threshold * gamma[unit]) for unit, n in norms.items()}
        for unit, n in norms.items():
            clipped = factors[unit] * n
            known = math.isfinite(gamma[unit])
            gamma[unit] = beta * gamma[unit] + (1 - beta) * clipped if known else clipped
        return factors

    return scale(trajectory, per, 2.0, coefficients)


def adagn(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 1.0,
    per: str = "tensor",
    beta1: float = 0.7,
    beta2: float = 0.9,
    eps: float = 1e-8,
) -> Trajectory:
    """g_u -> threshold g_u / n_u * mhat_u / (sqrt(vhat_u) + eps): Huang et al. 2025 (Stable-SPAM), AdaGN.

    m and v are the running means of n and n^2, this step's among them, bias-corrected by the unit's own count.
    """
    if threshold == INF:
        return trajectory
    m: Numbers = defaultdict(float)
    v: Numbers = defaultdict(float)
    count: dict[str, int] = defaultdict(int)

    def coefficients(norms: Numbers, _: dict[str, np.ndarray]) -> Numbers:
        out: Numbers = {}
        for unit, n in norms.items():
            count[unit] += 1
            m[unit] = beta1 * m[unit] + (1 - beta1) * n
            v[unit] = beta2 * v[unit] + (1 - beta2) * n**2
            mean = m[unit] / (1 - beta1 ** count[unit])
            square = v[unit] / (1 - beta2 ** count[unit])
            out[unit] = threshold / n * mean / (math.sqrt(square) + eps)
        return out

    return scale(trajectory, per, 2.0, coefficients)
