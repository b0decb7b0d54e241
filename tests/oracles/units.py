"""What an oracle clips as one: units of a step's gradients, their norms, and scaling them.

A unit is everything (``global``), a scope (``modality``), a parameter (``tensor``) or an output row (``unit``): one
index of dimension 0 of a tensor with two dimensions or more, the whole tensor otherwise. ``axes`` names the dimension
of a parameter ``<scope>/<name>`` whose rows lie along another one. A norm says something where it is finite and
above 0 (``tells``); every other unit passes as it is, and leaves state as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

Arrays = dict[str, dict[str, np.ndarray]]
Trajectory = list[Arrays]
Axes = Mapping[str, int]
Numbers = dict[str, float]  # by unit

INF = math.inf
ALONG_ROWS: Axes = {}


def copy(arrays: Arrays) -> Arrays:
    """The same in float64, to write to."""
    return {s: {n: np.array(a, np.float64) for n, a in d.items()} for s, d in arrays.items()}


def units(arrays: Arrays, per: str, axes: Axes = ALONG_ROWS) -> dict[str, list[np.ndarray]]:
    """The units' arrays, as views, by the units' names; arrays without elements are left out."""
    out: dict[str, list[np.ndarray]] = {}
    for scope, named in arrays.items():
        for name, array in named.items():
            tensor = f"{scope}/{name}"
            if not array.size:
                continue
            if per == "unit" and array.ndim >= 2:
                for i, row in enumerate(np.moveaxis(array, axes.get(tensor, 0), 0)):
                    out[f"{tensor}/{i}"] = [row]
            else:
                unit = {"global": "", "modality": scope, "tensor": tensor, "unit": tensor}[per]
                out.setdefault(unit, []).append(array)
    return out


def joined(arrays: Arrays, per: str, axes: Axes = ALONG_ROWS) -> dict[str, np.ndarray]:
    """Each unit's elements in a row."""
    return {
        unit: np.concatenate([view.ravel() for view in views])
        for unit, views in units(arrays, per, axes).items()
    }


def length(flat: np.ndarray, p: float = 2.0) -> float:
    """The p-norm."""
    return float(np.linalg.norm(flat, p)) if flat.size else 0.0


def tells(norm: float) -> bool:
    """Whether a norm is finite and above 0."""
    return math.isfinite(norm) and norm > 0


def cap(norm: float, bound: float) -> float:
    """The coefficient of a hard cap: exactly 1 up to the bound."""
    return bound / norm if norm > bound else 1.0


def scale(
    trajectory: Trajectory,
    per: str,
    p: float,
    coefficients: Callable[[Numbers, dict[str, np.ndarray]], Numbers],
    axes: Axes = ALONG_ROWS,
) -> Trajectory:
    """Multiply each unit at each step.

    ``coefficients`` gets, in the order of steps, the p-norms that tell something, by unit, and the elements of every
    unit with a gradient; a unit without a coefficient passes.
    """
    out = [copy(step) for step in trajectory]
    for step in out:
        flat = joined(step, per, axes)
        norms = {unit: n for unit, x in flat.items() if tells(n := length(x, p))}
        factors = coefficients(norms, flat)
        for unit, views in units(step, per, axes).items():
            for view in views:
                view[...] = view * factors.get(unit, 1.0)
    return out
