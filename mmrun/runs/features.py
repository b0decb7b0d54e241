"""What did feature clipping do? In numbers and in one sentence. Pure; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmrun.runs.verdict import Array, percent, short

# Logged names; those of gradients have the modality behind them: feature/gradient_clipped/image.
PREFIX = "feature/"
CLAMPED = "feature/clamped"  # share of the fused feature's elements that were clamped
LARGEST = "feature/largest"  # largest |element| of the fused feature, before clamping
SHORTENED = "feature/gradient_clipped"  # share of samples whose gradient was shortened
LONGEST = "feature/gradient_largest"  # largest norm of a sample's gradient, before that
MAXIMA = (LARGEST, LONGEST)  # over steps and ranks the largest is taken; of the others the mean


def feature_block(
    settings: Mapping[str, Any],
    feature_bound: float,
    gradient_bounds: Mapping[str, float],
    counts: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The ``features`` block of run.json: {"feature_clip", "gradient_clip", "verdict"}; {} with both clips off.

    ``feature_clip`` is {given, bound, clamped, largest}, ``gradient_clip`` {given, scopes: {modality: {bound,
    clipped, largest}}}; a clip that is off is not there. None stands for what was not counted.

    Args:
        settings: the config's ``model``.
        feature_bound: in force; the number that a percentile has become.
        gradient_bounds: the same by modality.
        counts: {logged name: mean over all steps, or the largest}; none before the end.
    """
    known = counts or {}
    block: dict[str, Any] = {}
    if _on(settings.get("feature_clip")):
        block["feature_clip"] = {
            "given": settings["feature_clip"],
            "bound": feature_bound,
            "clamped": known.get(CLAMPED),
            "largest": known.get(LARGEST),
        }
    if _on(settings.get("gradient_clip")):
        block["gradient_clip"] = {
            "given": settings["gradient_clip"],
            "scopes": {
                modality: {
                    "bound": value,
                    "clipped": known.get(f"{SHORTENED}/{modality}"),
                    "largest": known.get(f"{LONGEST}/{modality}"),
                }
                for modality, value in gradient_bounds.items()
            },
        }
    return block | {"verdict": _sentence(block)} if block else {}


def counted(columns: Mapping[str, Array]) -> dict[str, float]:
    """What a run that died has counted, from gradients.csv: means over its rows, and the largest."""
    counts: dict[str, float] = {}
    for name, values in columns.items():
        if not name.startswith(PREFIX) or not np.isfinite(values).any():
            continue
        how = np.nanmax if name.startswith(MAXIMA) else np.nanmean
        counts[name] = float(how(values))
    return counts


def _on(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, int | float) and given < math.inf)


def _sentence(block: Mapping[str, Any]) -> str:
    parts: list[str] = []
    features = block.get("feature_clip")
    if features is not None:
        label = f"feature_clip {_label(features['given'], features['bound'])}"
        if features["clamped"] is None:
            parts.append(label)
        elif features["clamped"] == 0:
            parts.append(f"{label}: nothing clamped, the largest feature is {_size(features)}")
        else:
            parts.append(
                f"{label}: {percent(features['clamped'])} of features clamped, the largest was {_size(features)}"
            )
    gradients = block.get("gradient_clip")
    if gradients is not None:
        parts.append(_of_gradients(gradients))
    return "; ".join(parts)


def _of_gradients(gradients: Mapping[str, Any]) -> str:
    given, scopes = gradients["given"], gradients["scopes"]
    one = not isinstance(given, str)
    label = f"gradient_clip {short(given)}" if one else f"gradient_clip {given}"
    names = {
        modality: modality if one else f"{modality} ({short(values['bound'])})"
        for modality, values in scopes.items()
    }
    shares = [values["clipped"] for values in scopes.values()]
    if any(share is None for share in shares):
        return label if one else f"{label}: {', '.join(names.values())}"
    if not any(shares):
        return f"{label}: no gradient clipped"
    said = [
        f"{percent(values['clipped']) if values['clipped'] else '0 %'} into {names[modality]}"
        for modality, values in scopes.items()
    ]
    return f"{label}: gradients of samples clipped, {', '.join(said)}"


def _label(given: float | str, value: float) -> str:
    return f"{given} ({short(value)})" if isinstance(given, str) else short(value)


def _size(features: Mapping[str, Any]) -> str:
    return short(features["largest"])
