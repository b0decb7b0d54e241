"""Did clipping engage? Answers in numbers and in one sentence.

Pure functions over what a run recorded; numpy alone, so that a training can ask them at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrun.runs.stability import Stability
from mmrun.spec import law_of

Array = NDArray[np.float64]

SAME_DIRECTION = 0.999  # cosine of raw and clipped gradient
SPREAD_QUANTILES = (50, 90, 99)
# Optimizers that divide by a running size of the gradient: a constant factor on it cancels out.
ADAPTIVE = (
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "radam",
    "adagrad",
    "adadelta",
    "rmsprop",
    "adafactor",
    "lion",
)
# Labels as people write them, where capitalizing the name would not do.
_LABELS = {"adamw": "AdamW", "rmsprop": "RMSprop", "nadam": "NAdam", "radam": "RAdam"}


def clip_block(
    gradients: Mapping[str, Array],
    *,
    algorithm: str,
    threshold: float | str | None = None,
    per: str = "global",
    optimizer: str = "",
    stable: Stability | None = None,
    counted: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The ``clip`` block of run.json, its verdict included.

    A share is one of all steps where they were counted, else of recorded ones; the coefficient is the median over the steps at which the law
    changed anything (1 when it never did); ``elements`` the mean share of elements changed. A
    scope's ``share`` is its median part of the squared norm; norm and share are the gradient's, those of the
    update stand under ``update`` where it was what is clipped. None stands for what was not recorded.

    Args:
        gradients: columns of gradients.csv.
        algorithm: name of the clip law, "none" for no clipping.
        threshold: as configured; where it is no number (``p90``), the median in force is taken.
        per: granularity of the law.
        optimizer: its name, so that the verdict can say what to expect.
        stable: how the training went.
        counted: over every step, also those without a row: ``clip/fraction`` and ``clip/fraction/<scope>``,
            ``clip/elements``, and the number ``grad/nonfinite``.
        settings: the config's ``clip``, for what there was beside the law: scopes with laws of their own, a floor.
    """
    known = counted or {}
    norms = _finite(gradients.get("grad/norm"))
    engaged = _engaged(gradients, "")
    coefficient = gradients.get("clip/coefficient")
    number = _number(threshold)
    if number is None and algorithm != "none":
        number = _median(gradients.get("clip/threshold"))
    block: dict[str, Any] = {
        "algorithm": algorithm,
        "threshold": number,
        "per": per,
        "fraction": known.get("clip/fraction", _share(engaged)),
        "coefficient": _median_where(coefficient, engaged),
        "elements": known.get("clip/elements", _mean(gradients.get("clip/elements"))),
        "scopes": _scopes(gradients, known),
    }
    block["verdict"] = _sentence(
        block,
        norms=norms,
        nonfinite=int(
            known.get(
                "grad/nonfinite", np.max(_finite(gradients.get("grad/nonfinite")), initial=0.0)
            )
        ),
        # What turns the gradient is no constant factor on it, and so is nothing that Adam undoes.
        optimizer=optimizer if _only_scales(gradients, engaged) else "",
        settings=settings or {},
        stable=stable,
    )
    return block


def scope_names(gradients: Mapping[str, Array]) -> list[str]:
    """Scopes that have a norm among the columns of gradients.csv, in the order recorded."""
    prefix = "grad/norm/"
    return [name.removeprefix(prefix) for name in gradients if name.startswith(prefix)]


def optimizer_label(optimizer: str) -> str:
    """An optimizer's name as people write it: AdamW, SGD, Momentum.

    >>> optimizer_label("torch.optim.AdamW"), optimizer_label("sgd")
    ('AdamW', 'SGD')
    """
    name = optimizer.rpartition(".")[2].lower()
    return _LABELS.get(name, name.upper() if len(name) <= 3 else name.capitalize())


def is_adaptive(optimizer: str) -> bool:
    """Does this optimizer undo a constant factor on the gradient?"""
    return optimizer.rpartition(".")[2].lower() in ADAPTIVE


def _sentence(
    block: Mapping[str, Any],
    *,
    norms: Array,
    nonfinite: int,
    optimizer: str,
    settings: Mapping[str, Any],
    stable: Stability | None,
) -> str:
    parts: list[str] = []
    if stable is not None and stable.state != "ok":
        parts.append(str(stable))
    fraction, coefficient = block["fraction"], block["coefficient"]
    number: float | None = block["threshold"]
    if number is not None and not np.isfinite(number) and "threshold" not in settings:
        number = None  # the law has none
    threshold = "" if number is None else f" {_bound(number)}"
    beside = _beside(settings)
    of_update = settings.get("on") == "update"
    label = f"{block['algorithm']}{threshold}{' of the update' if of_update else ''}"
    label += f" ({', '.join(beside)})" if beside else ""
    if block["algorithm"] == "none" and not beside:
        if norms.size:
            p50, p99 = np.percentile(norms, (50, 99))
            parts.append(f"no clipping: gradient norm p50 {short(p50)}, p99 {short(p99)}")
        else:
            parts.append("no clipping")
    elif fraction is None:
        parts.append(f"{label}: no gradients were recorded")
    elif fraction == 0:
        parts.append(f"{label} never engaged: the same as clip=none")
    else:
        grows = coefficient is not None and coefficient > 1
        did = "skipped" if coefficient == 0 else "rescaled" if grows else "clipped"
        said = f"{label} {did} {percent(fraction)} of steps"
        if coefficient:
            said += f", median coefficient {short(coefficient)}"
        parts.append(said)
        if is_adaptive(optimizer) and not of_update:
            parts.append(f"with {optimizer_label(optimizer)} expect little effect")
    if nonfinite:
        parts.append(f"{nonfinite} step{'s' if nonfinite > 1 else ''} with non-finite gradients")
    return "; ".join(parts)


def _only_scales(gradients: Mapping[str, Array], engaged: NDArray[np.bool_] | None) -> bool:
    """Whether the law, where it acted, left the gradient its direction."""
    cosine = _median_where(gradients.get("grad/cosine"), engaged)
    coefficient = _median_where(gradients.get("clip/coefficient"), engaged)
    return (cosine is None or cosine > SAME_DIRECTION) and coefficient != 0


def _beside(settings: Mapping[str, Any]) -> list[str]:
    """What acts beside the law: ``audio: value 0.1``, ``floor 0.1``."""
    own = settings.get("scopes")
    words: list[str] = []
    for scope, node in (own if isinstance(own, Mapping) else {}).items():  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        law = law_of(str(node.get("_target_", ""))) if isinstance(node, Mapping) else str(node)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        number = _number(node.get("threshold")) if isinstance(node, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        words.append(f"{scope}: {law}" + ("" if number is None else f" {_bound(number)}"))
    floor = _number(settings.get("floor"))
    return words + ([f"floor {_bound(floor)}"] if floor else [])


def _scopes(
    gradients: Mapping[str, Array], known: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    updates = _sizes(gradients, "update/norm/")
    blocks: dict[str, dict[str, Any]] = {}
    for name, size in _sizes(gradients, "grad/norm/").items():
        blocks[name] = {
            "norm": size["norm"],
            "fraction": known.get(f"clip/fraction/{name}", _share(_engaged(gradients, f"/{name}"))),
            "share": size["share"],
            "payer": _median(gradients.get(f"clip/payer/{name}")),
        }
        if name in updates:
            blocks[name]["update"] = updates[name]
    return blocks


def _sizes(columns: Mapping[str, Array], prefix: str) -> dict[str, dict[str, Any]]:
    """{scope: percentiles of its norm, median part of the squared norm}, from the columns with a prefix."""
    names = [name.removeprefix(prefix) for name in columns if name.startswith(prefix)]
    if not names:
        return {}
    squares = np.stack([columns[prefix + name] for name in names]) ** 2  # [S, N]
    total = squares.sum(axis=0)
    valid = np.isfinite(total) & (total > 0)
    shares = squares[:, valid] / total[valid]
    sizes: dict[str, dict[str, Any]] = {}
    for row, name in enumerate(names):
        norms = _finite(columns[prefix + name])
        values = np.percentile(norms, SPREAD_QUANTILES) if norms.size else (None,) * 3
        sizes[name] = {
            "norm": {
                f"p{quantile}": None if value is None else float(value)
                for quantile, value in zip(SPREAD_QUANTILES, values, strict=True)
            },
            "share": float(np.median(shares[row])) if valid.any() else None,
        }
    return sizes


def _engaged(gradients: Mapping[str, Array], suffix: str) -> NDArray[np.bool_] | None:
    """Steps at which the law changed any element [N]; by the coefficient where that is all there is."""
    elements = gradients.get(f"clip/elements{suffix}")
    if elements is not None and np.isfinite(elements).any():
        return elements > 0
    coefficient = gradients.get(f"clip/coefficient{suffix}")
    if coefficient is not None and np.isfinite(coefficient).any():
        return np.abs(coefficient - 1) > 1e-6
    return None


def _finite(values: Array | None) -> Array:
    return np.empty(0) if values is None else values[np.isfinite(values)]


def _median(values: Array | None) -> float | None:
    finite = _finite(values)
    return float(np.median(finite)) if finite.size else None


def _mean(values: Array | None) -> float | None:
    finite = _finite(values)
    return float(np.mean(finite)) if finite.size else None


def _median_where(values: Array | None, mask: NDArray[np.bool_] | None) -> float | None:
    if values is None or mask is None or not np.isfinite(values).any():
        return None
    return 1.0 if not mask.any() else _median(values[mask])


def _share(mask: NDArray[np.bool_] | None) -> float | None:
    return None if mask is None or mask.size == 0 else float(np.mean(mask))


def _number(threshold: float | str | None) -> float | None:
    try:
        return None if threshold is None else float(threshold)
    except ValueError:
        return None


def _bound(threshold: float) -> str:
    """A threshold as a sentence has it: the user's own number, not one beside it."""
    return f"{threshold:.4g}"


def short(value: float) -> str:
    """A number as a sentence has it: two digits."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share as a sentence has it; never 0 or 100 by rounding."""
    points = 100 * share
    if points < 1:
        return "under 1 %"
    return f"{min(points, 99):.0f} %" if share < 1 else "100 %"
