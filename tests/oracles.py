"""Every clip law in NumPy, written from its formula; and how tests build the laws of conf/clip.

An oracle takes the raw gradients of a whole training (so that laws with state fit) and returns the clipped ones:
``oracle(trajectory, weights, **knobs) -> trajectory``; a trajectory is a list of {scope: {name: array}}, in
float64; an absent gradient is not in the dict. Weights are {scope: {name: array}} and stay as they are.
To add a law: its function here, an entry in ``ORACLES``, and settings worth trying in ``VARIANTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from mmrun.clip.law import Law

Arrays = dict[str, dict[str, np.ndarray]]
Trajectory = list[Arrays]

CONF = Path(__file__).parents[1] / "conf" / "clip"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


def config(option: str) -> dict[str, Any]:
    """What conf/clip/<option>.yaml says."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def knobs(option: str, **overrides: Any) -> dict[str, Any]:
    """The constructor's arguments as conf/clip has them, with overrides."""
    given = config(option)
    unknown = set(overrides) - set(given)
    assert not unknown, f"conf/clip/{option}.yaml has no {unknown}"
    return {k: v for k, v in (given | overrides).items() if k not in ("_target_", "defaults")}


def build(option: str, **overrides: Any) -> Law:
    """The law of conf/clip/<option>.yaml, with overrides."""
    module, name = config(option)["_target_"].rsplit(".", 1)
    return getattr(import_module(module), name)(**knobs(option, **overrides))


def none(trajectory: Trajectory, weights: Arrays) -> Trajectory:  # noqa: ARG001 (signature)
    return trajectory


def value(trajectory: Trajectory, weights: Arrays, *, threshold: float) -> Trajectory:  # noqa: ARG001
    return [
        {
            s: {n: np.clip(g, -threshold, threshold) for n, g in named.items()}
            for s, named in step.items()
        }
        for step in trajectory
    ]


def norm(
    trajectory: Trajectory,
    weights: Arrays,
    *,
    threshold: float,
    p: float,
    per: str,
    budget: str,
    split: str,  # noqa: ARG001 (equal here)
    eps: float,
) -> Trajectory:
    keys = [(scope, name) for scope, named in weights.items() for name in named]
    units = {
        "global": [keys],
        "modality": [[key for key in keys if key[0] == scope] for scope in weights],
        "tensor": [[key] for key in keys],
    }[per]
    units = [unit for unit in units if unit]
    share = threshold / len(units) ** (1 / p) if budget == "total" else threshold
    out: Trajectory = []
    for step in trajectory:
        clipped: Arrays = {scope: {} for scope in step}
        for unit in units:
            here = {(s, n): step[s][n] for s, n in unit if n in step[s]}
            flat = np.concatenate([g.ravel() for g in here.values()] or [np.zeros(0)])
            length = np.linalg.norm(flat, p) if flat.size else 0.0
            factor = share / (length + eps) if np.isfinite(length) and length + eps > share else 1.0
            for (s, n), g in here.items():
                clipped[s][n] = g * factor
        out.append(clipped)
    return out


ORACLES: Mapping[str, Callable[..., Trajectory]] = {"none": none, "norm": norm, "value": value}

VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "none": [{}],
    "value": [{"threshold": 0.01}, {"threshold": 1.0}, {"threshold": float("inf")}],
    "norm": [
        {"threshold": 0.3},
        {"threshold": float("inf")},
        {"threshold": 2.0, "eps": 1e-6},
        {"threshold": 0.5, "p": float("inf")},
        {"threshold": 3.0, "p": 1.0},
        {"threshold": 1.0, "p": 3.5, "per": "modality"},
        {"threshold": 1.0, "per": "modality"},
        {"threshold": 1.0, "per": "modality", "budget": "each"},
        {"threshold": 1.0, "per": "tensor"},
        {"threshold": 0.4, "per": "tensor", "budget": "each", "p": float("inf")},
    ],
}
SETTINGS = [(option, variant) for option in OPTIONS for variant in VARIANTS.get(option, [{}])]
