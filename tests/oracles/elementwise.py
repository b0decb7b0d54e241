"""The laws that change a gradient's direction by what they know of its elements: spike, adaclip, coordinate, clip21, noise.

But for clip21 the unit is the parameter: one with a zero or non-finite gradient passes, and leaves its state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from tests.oracles.units import (
    INF,
    Arrays,
    Trajectory,
    cap,
    copy,
    joined,
    length,
    tells,
    units,
)

Rule = Callable[[np.ndarray], np.ndarray]  # one parameter's gradient, step after step


def each_tensor(trajectory: Trajectory, rule: Callable[[], Rule]) -> Trajectory:
    """Every parameter by a rule of its own."""
    rules: dict[tuple[str, str], Rule] = defaultdict(rule)
    out = [copy(step) for step in trajectory]
    for step in out:
        for scope, named in step.items():
            for name, g in named.items():
                if tells(length(g.ravel())):
                    named[name] = rules[scope, name](g)
    return out


class Spike:
    """g_i^2 > theta v_i -> sign(g_i) sqrt(theta v_i); then v = beta v + (1 - beta) g^2 of the clipped g.

    Decision: an element whose v is 0 (all its gradients were 0 so far) passes: bounded by 0 it would never move
    again. A row of an embedding that was not used during the warm-up is such.
    """

    def __init__(self, theta: float, beta: float, warmup: int) -> None:
        self.theta, self.beta, self.warmup = theta, beta, warmup
        self.v: np.ndarray | float = 0.0
        self.seen = 0

    def __call__(self, g: np.ndarray) -> np.ndarray:
        out = g
        if self.seen >= self.warmup:
            square = self.theta * self.v
            out = np.where((g**2 > square) & (square > 0), np.sign(g) * np.sqrt(square), g)
        self.v = self.beta * self.v + (1 - self.beta) * out**2
        self.seen += 1
        return out


def spike(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 5000.0,
    beta: float = 0.999,
    warmup_steps: int = 20,
) -> Trajectory:
    """Huang et al. 2025 (SPAM), spike-aware clipping, without the momentum reset."""
    if threshold == INF:
        return trajectory
    return each_tensor(trajectory, lambda: Spike(threshold, beta, warmup_steps))


class AdaClip:
    """T = beta T + (1 - beta) max|g|; |g_i| > s T / (1 - beta^t) -> g_i / max|g| * s T / (1 - beta^t)."""

    def __init__(self, scale: float, beta: float) -> None:
        self.scale, self.beta = scale, beta
        self.mean, self.count = 0.0, 0

    def __call__(self, g: np.ndarray) -> np.ndarray:
        largest = np.abs(g).max()
        self.count += 1
        self.mean = self.beta * self.mean + (1 - self.beta) * largest
        bound = self.scale * self.mean / (1 - self.beta**self.count)
        return np.where(np.abs(g) > bound, g / largest * bound, g)


def adaclip(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 1.0,
    beta: float = 0.999,
) -> Trajectory:
    """Huang et al. 2025 (Stable-SPAM), AdaClip; t counts the parameter's own steps."""
    if threshold == INF:
        return trajectory
    return each_tensor(trajectory, lambda: AdaClip(threshold, beta))


class Coordinate:
    """m = b1 m + (1 - b1) g; tau^a = b2 tau^a + (1 - b2) |g|^a; g_i -> g_i min(1, s tau_i / (|m_i| + eps)).

    Both start at 0, take up this step's gradient before they are used, and are not bias-corrected.
    """

    def __init__(self, scale: float, alpha: float, beta1: float, beta2: float, eps: float) -> None:
        self.scale, self.alpha, self.beta1, self.beta2, self.eps = scale, alpha, beta1, beta2, eps
        self.m: np.ndarray | float = 0.0
        self.power: np.ndarray | float = 0.0  # tau^alpha

    def __call__(self, g: np.ndarray) -> np.ndarray:
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.power = self.beta2 * self.power + (1 - self.beta2) * np.abs(g) ** self.alpha
        tau = self.power ** (1 / self.alpha)
        return g * np.minimum(1.0, self.scale * tau / (np.abs(self.m) + self.eps))


def coordinate(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 1.0,
    alpha: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-8,
) -> Trajectory:
    """Zhang et al. 2020 (ACClip), algorithm 2, with the coefficient on the gradient and not on its running mean."""
    if threshold == INF:
        return trajectory
    return each_tensor(trajectory, lambda: Coordinate(threshold, alpha, beta1, beta2, eps))


def clip21(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 1.0,
    per: str = "global",
    p: float = 2.0,
) -> Trajectory:
    """v_u = v_u + (g_u - v_u) min(1, c / |g_u - v_u|), and the gradient becomes v_u: Khirirat et al. 2023 (Clip21).

    Decisions: a unit whose gradient (not the difference) is zero or not finite passes and leaves v; a parameter
    without a gradient at this step takes no part, neither in the difference nor in its norm.
    """
    if threshold == INF:
        return trajectory
    kept: Arrays = {}
    out = [copy(step) for step in trajectory]
    for step in out:
        here: Arrays = {}
        for scope, named in step.items():
            memory = kept.setdefault(scope, {})
            here[scope] = {n: memory.setdefault(n, np.zeros_like(g)) for n, g in named.items()}
        flat, before = joined(step, per), joined(here, per)
        pairs = zip(units(step, per).items(), units(here, per).values(), strict=True)
        for (unit, gradients), memories in pairs:
            if tells(length(flat[unit], p)):
                factor = cap(length(flat[unit] - before[unit], p), threshold)
                for g, v in zip(gradients, memories, strict=True):
                    v[...] = v + factor * (g - v)
                    g[...] = v
    return out


def noise(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 0.01,  # noqa: ARG001 (the mean does not depend on it)
    decay: float = 0.55,  # noqa: ARG001
    seed: int = 0,  # noqa: ARG001
) -> Trajectory:
    """The mean of g + N(0, eta / (1 + t)^decay): Neelakantan et al. 2015, equation 1."""
    return trajectory


def noise_variance(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 0.01,
    decay: float = 0.55,
    seed: int = 0,  # noqa: ARG001
) -> Trajectory:
    """The variance of each element of what ``noise`` gives.

    Decisions: a parameter whose gradient is zero or not finite gets no noise (a missing modality's encoder stays where
    it is); t counts the steps, from 0, at which the norm of everything tells something; infinity is "off".
    """
    out: Trajectory = []
    t = 0
    for step in trajectory:
        now = 0.0 if threshold == INF else threshold / (1 + t) ** decay
        out.append(
            {
                scope: {
                    n: np.full(g.shape, now if tells(length(g.ravel())) else 0.0)
                    for n, g in named.items()
                }
                for scope, named in step.items()
            }
        )
        t += tells(length(joined(step, "global").get("", np.zeros(0))))
    return out
