"""Laws one after the other: chain. And what a member of a chain is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.oracles import adaptive, elementwise, static
from tests.oracles.units import Arrays, Trajectory

Oracle = Callable[..., Trajectory]

SINGLE: Mapping[str, Oracle] = {
    "none": static.none,
    "value": static.value,
    "norm": static.norm,
    "normalize": static.normalize,
    "smooth": static.smooth,
    "agc": static.agc,
    "block_rms": static.block_rms,
    "autoclip": adaptive.autoclip,
    "zclip": adaptive.zclip,
    "quantile": adaptive.quantile,
    "ema": adaptive.ema,
    "adagc": adaptive.adagc,
    "skip": adaptive.skip,
    "spike": elementwise.spike,
    "adaclip": elementwise.adaclip,
    "adagn": adaptive.adagn,
    "coordinate": elementwise.coordinate,
    "clip21": elementwise.clip21,
    "centralize": static.centralize,
    "noise": elementwise.noise,
}


def members(laws: Sequence[Any], threshold: float) -> list[tuple[str, dict[str, Any]]]:
    """Option and knobs of each member: ``agc``, ``agc_0.01`` or a node; the chain's threshold is the last one's."""
    out: list[tuple[str, dict[str, Any]]] = []
    for law in laws:
        if isinstance(law, Mapping):
            # A law's file has the option's name.
            option = law["_target_"].split(".")[-2]
            out.append((option, {str(k): v for k, v in law.items() if k != "_target_"}))
        elif law in SINGLE:
            out.append((law, {}))
        else:
            option, number = law.rsplit("_", 1)
            out.append((option, {"threshold": float(number)}))
    option, knobs = out[-1]
    return [*out[:-1], (option, knobs | {"threshold": threshold})]


def chain(
    trajectory: Trajectory,
    weights: Arrays,
    *,
    threshold: float = 1.0,
    laws: Sequence[Any] = ("centralize", "norm"),
) -> Trajectory:
    """The last of g, law_1(g), law_2(law_1(g)), ...: each law learns from what the one before it let through."""
    for option, knobs in members(laws, threshold):
        trajectory = SINGLE[option](trajectory, weights, **knobs)
    return trajectory
