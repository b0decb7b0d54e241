"""The laws whose bound is the same at every step: none, value, norm, normalize, smooth, agc, block_rms, centralize."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from tests.oracles.units import (
    ALONG_ROWS,
    INF,
    Arrays,
    Axes,
    Numbers,
    Trajectory,
    cap,
    copy,
    joined,
    length,
    scale,
    tells,
    units,
)

SPLIT_BETA = 0.99  # memory of the running means that split=norm shares a budget by


def none(trajectory: Trajectory, weights: Arrays) -> Trajectory:  # noqa: ARG001 (signature)
    """g -> g."""
    return trajectory


def value(trajectory: Trajectory, weights: Arrays, *, threshold: float = 0.1) -> Trajectory:  # noqa: ARG001
    """g_i -> min(max(g_i, -c), c); NaN stays NaN, and an infinite element becomes c."""
    return [
        {
            s: {n: np.clip(g, -threshold, threshold) for n, g in named.items()}
            for s, named in step.items()
        }
        for step in trajectory
    ]


def bounds(
    weights: Arrays, threshold: float, p: float, per: str, budget: str, split: str, axes: Axes
) -> Callable[[Numbers], Numbers]:
    """c_u for each unit, from the norms of this step, such that sum c_u^p = c^p with ``budget=total``.

    - ``equal``: c / K^(1/p) for K units, whether or not all have a gradient at this step.
    - ``size``: c (D_u / D)^(1/p) for D_u of D elements.
    - ``norm``: c (e_u / sum e)^(1/p), where e_u is the running mean of n_u^p: it starts at the first n_u^p that tells
      something, takes up this step's before it is used, and stays at a step without one. Units that never had one
      are not in the sum.

    Decision: with p infinite, sum c_u^p = c^p reads max c_u = c, so every split gives every unit c.
    """
    sizes = {unit: sum(v.size for v in views) for unit, views in units(weights, per, axes).items()}
    running: Numbers = {}

    def of(norms: Numbers) -> Numbers:
        if budget == "each" or p == INF or threshold == INF:
            return dict.fromkeys(norms, threshold)
        if split == "equal":
            shares = {unit: 1 / len(sizes) for unit in norms}
        elif split == "size":
            shares = {unit: sizes[unit] / sum(sizes.values()) for unit in norms}
        else:
            assert split == "norm"
            for unit, n in norms.items():
                power = float(n**p)
                running[unit] = SPLIT_BETA * running.get(unit, power) + (1 - SPLIT_BETA) * power
            shares = {unit: running[unit] / sum(running.values()) for unit in norms}
        return {unit: threshold * share ** (1 / p) for unit, share in shares.items()}

    return of


def norm(
    trajectory: Trajectory,
    weights: Arrays,
    *,
    threshold: float = 1.0,
    p: float = 2.0,
    per: str = "global",
    budget: str = "total",
    split: str = "equal",
    eps: float = 0.0,
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """g_u -> g_u min(1, c_u / (n_u + eps)): Pascanu et al. 2013; torch's clip_grad_norm_ with eps = 1e-6."""
    bound = bounds(weights, threshold, p, per, budget, split, axes)

    def coefficients(norms: Numbers, _: dict[str, np.ndarray]) -> Numbers:
        c = bound(norms)
        return {unit: cap(n + eps, c[unit]) for unit, n in norms.items()}

    return scale(trajectory, per, p, coefficients, axes)


def normalize(
    trajectory: Trajectory,
    weights: Arrays,
    *,
    threshold: float = 1.0,
    p: float = 2.0,
    per: str = "global",
    budget: str = "total",
    split: str = "equal",
    eps: float = 1e-6,
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """g_u -> c_u g_u / (n_u + eps): Cutkosky and Mehta 2020; optax.normalize_by_update_norm."""
    if threshold == INF:
        return trajectory
    bound = bounds(weights, threshold, p, per, budget, split, axes)

    def coefficients(norms: Numbers, _: dict[str, np.ndarray]) -> Numbers:
        c = bound(norms)
        return {unit: c[unit] / (n + eps) for unit, n in norms.items()}

    return scale(trajectory, per, p, coefficients, axes)


def smooth(
    trajectory: Trajectory,
    weights: Arrays,
    *,
    threshold: float = 1.0,
    p: float = 2.0,
    per: str = "global",
    budget: str = "total",
    split: str = "equal",
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """g_u -> g_u / (1 + n_u / c_u): Bu et al. 2022 (AUTO-S), Yang et al. 2022 (NSGD)."""
    bound = bounds(weights, threshold, p, per, budget, split, axes)

    def coefficients(norms: Numbers, _: dict[str, np.ndarray]) -> Numbers:
        c = bound(norms)
        return {unit: 1 / (1 + n / c[unit]) for unit, n in norms.items()}

    return scale(trajectory, per, p, coefficients, axes)


def agc(
    trajectory: Trajectory,
    weights: Arrays,
    *,
    threshold: float = 0.01,
    per: str = "unit",
    eps: float = 1e-3,
    exclude: Sequence[str] = ("objective",),
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """g_u -> g_u min(1, lambda max(|w_u|, eps) / |g_u|): Brock et al. 2021, equation 3; timm/utils/agc.py.

    Decisions: a scope in ``exclude`` is in no unit, so that its gradient counts neither in the norm of everything nor
    in its weights; |w_u| is over all weights of the unit, also over those without a gradient at this step.
    """
    included = {scope: named for scope, named in weights.items() if scope not in exclude}
    lengths = {unit: length(w) for unit, w in joined(copy(included), per, axes).items()}

    def coefficients(norms: Numbers, _: dict[str, np.ndarray]) -> Numbers:
        return {u: cap(n, threshold * max(lengths[u], eps)) for u, n in norms.items()}

    inside = [{s: d for s, d in step.items() if s not in exclude} for step in trajectory]
    clipped = scale(inside, per, 2.0, coefficients, axes)
    return [
        {scope: mine.get(scope, named) for scope, named in step.items()}
        for step, mine in zip(trajectory, clipped, strict=True)
    ]


def block_rms(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    threshold: float = 1.0,
    per: str = "tensor",
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """g_u -> g_u / max(1, rms(g_u) / d): Shazeer and Stern 2018 (Adafactor), section 6; optax.clip_by_block_rms.

    Decision: the mean is over the elements that have a gradient at this step.
    """

    def coefficients(norms: Numbers, flat: dict[str, np.ndarray]) -> Numbers:
        rms = {unit: np.sqrt(np.mean(flat[unit] ** 2)) for unit in norms}
        return {unit: 1 / max(1.0, rms[unit] / threshold) for unit in norms}

    return scale(trajectory, per, 2.0, coefficients, axes)


def centralize(
    trajectory: Trajectory,
    weights: Arrays,  # noqa: ARG001
    *,
    embeddings: Collection[str] = (),
) -> Trajectory:
    """g -> g - mean of g over dimensions 1 and up, where there are any: Yong et al. 2020, equation 1; optax.centralize.

    ``embeddings``: the parameters ``<scope>/<name>`` that are an embedding's, which pass. Decisions: a tensor with a
    non-finite norm passes whole; a row of one element becomes 0, as the formula says.
    """
    out = [copy(step) for step in trajectory]
    for step in out:
        for scope, named in step.items():
            for name, g in named.items():
                if g.ndim > 1 and f"{scope}/{name}" not in embeddings and tells(length(g.ravel())):
                    g[...] = g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
    return out
