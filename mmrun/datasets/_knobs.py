"""What datasets share in reading their knobs: ranges, the modalities in use, random streams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from mmrun.errors import UserError, nearest
from mmrun.spec import KINDS, MODALITY_NAME, RESERVED_SCOPES


def stream(seed: int, *names: str) -> np.random.Generator:
    """The generator for one purpose: its numbers depend on (seed, names) alone.

    One stream per modality and split keeps the inputs of a modality the same whichever others are used.
    """
    if seed < 0:
        raise UserError("data_seed is a whole number", given=seed, remedy="Give data_seed >= 0.")
    return np.random.default_rng([seed, *(crc32(name.encode()) for name in names)])


def within(
    knob: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> None:
    """Raise ``UserError`` unless low <= value <= high, above < value < below, and it is finite."""
    if (
        (math.isfinite(value) or (infinite and not math.isnan(value)))
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    ):
        return
    signs = ((">=", low), (">", above), ("<=", high), ("<", below))
    bounds = [f"{sign} {bound:g}" for sign, bound in signs if bound is not None]
    raise UserError(
        f"dataset.{knob} is out of range",
        given=value,
        remedy=f"Give a number {' and '.join(bounds)}.",
    )


def declared(modalities: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``modalities`` {name: kind, or a mapping with a kind} as {name: mapping}, names and kinds checked."""
    read: dict[str, dict[str, Any]] = {}
    for name, entry in modalities.items():
        if not MODALITY_NAME.fullmatch(str(name)) or name in RESERVED_SCOPES:
            raise UserError(
                "a modality's name is a lower-case letter, then letters, digits and _",
                given=name,
                remedy=f"Not one of {', '.join(RESERVED_SCOPES)} either.",
            )
        settings = dict(entry) if isinstance(entry, Mapping) else {"kind": entry}
        kind = settings.get("kind")
        if kind not in KINDS:
            raise UserError(
                f"modality {name} needs a kind",
                given=kind,
                remedy=nearest(str(kind), KINDS),
            )
        read[str(name)] = settings
    return read


def settings_of(
    name: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """A modality's settings over ``defaults``; ``UserError`` for a name or a type that does not fit."""
    for key, value in settings.items():
        if key == "kind":
            continue
        if key not in defaults:
            raise UserError(f"modality {name} has no setting {key}", remedy=nearest(key, defaults))
        number = isinstance(defaults[key], int | float)
        if number and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"dataset.modalities.{name}.{key} is a number", given=value)
    return {**defaults, **settings}


def chosen(use: str | Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    """The modalities in use, in the dataset's order. use: "all", a name, or names."""
    if use == "all":
        return tuple(offered)
    names = [use] if isinstance(use, str) else [str(name) for name in use]
    for name in names:
        if name not in offered:
            raise UserError(
                "dataset.use names a modality that the dataset does not have",
                given=name,
                remedy=nearest(name, offered),
            )
    if len(set(names)) < len(names):
        raise UserError("dataset.use names a modality twice", given=names, remedy="Once is enough.")
    if not names:
        raise UserError(
            "dataset.use is empty", remedy=f"Give all, or some of {', '.join(offered)}."
        )
    return tuple(name for name in offered if name in names)
