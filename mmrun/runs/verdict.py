"""Did clipping engage, and did training stay stable? Answers in numbers and in one sentence.

Pure functions over what a run recorded; numpy alone, so that a training can ask them at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
State = Literal["ok", "spiked", "collapsed", "diverged"]

SPIKE_FACTOR = 10.0  # times the running median of the last SPIKE_WINDOW steps
SPIKE_WINDOW = 100
COLLAPSE_FACTOR = 0.9  # of the first loss
COLLAPSE_MIN_STEPS = 20
FIRST_STEPS = 3
LUCKY_WINDOW = 15  # a median this wide steps over single batches, and still dates an early collapse
FINAL_SHARE = 0.05
FINAL_MIN_STEPS = 5
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
_CHUNK = 4096


@dataclass(frozen=True)
class Stability:
    """How a training went, and the step at which it went wrong.

    Args:
        state: the worst that applies: ok, spiked, collapsed, diverged.
        step: where it began; None when ok, or when only the metric tells.
        never_learnt: a collapse in which the loss never fell at all.
    """

    state: State
    step: int | None = None
    never_learnt: bool = False

    def __str__(self) -> str:
        if self.state == "ok":
            return "stable"
        if self.state == "spiked":
            return f"the loss spiked at step {self.step}"
        if self.state == "collapsed" and self.never_learnt:
            return "collapsed: the loss never fell for good"
        if self.step is None:
            return "collapsed: the metric is at chance"
        return f"{self.state} at step {self.step}"


def stability(
    losses: ArrayLike, steps: ArrayLike | None = None, *, at_chance: bool = False
) -> Stability:
    """Judge a training by its losses; the worst that applies counts.

    - diverged: a loss is not finite.
    - collapsed: the median of the last 5 % of losses (at least five) is not below 0.9 of the first
      (median of three), or the metric is at chance; from 20 losses on.
    - spiked: a loss is over ten times the median of up to 100 before it, and above the first.

    Args:
        losses: training loss per recorded step [N], none missing.
        steps: the steps they belong to [N]; 0, 1, 2, ... by default.
        at_chance: the final metric is no better than guessing.
    """
    loss = np.asarray(losses, dtype=np.float64).ravel()
    at = np.arange(loss.size) if steps is None else np.asarray(steps).ravel()
    if loss.size == 0:
        return Stability("ok")
    broken = np.flatnonzero(~np.isfinite(loss))
    if broken.size:
        return Stability("diverged", int(at[broken[0]]))
    if loss.size >= COLLAPSE_MIN_STEPS:
        window = max(FINAL_MIN_STEPS, math.ceil(FINAL_SHARE * loss.size))
        bound = _collapse_bound(loss)
        if float(np.median(loss[-window:])) >= bound:
            return _collapse(loss, at, bound, window)
        if at_chance:
            return Stability("collapsed")
    spike = _first_spike(loss)
    return Stability("ok") if spike is None else Stability("spiked", int(at[spike]))


def clip_block(
    gradients: Mapping[str, Array],
    *,
    algorithm: str,
    threshold: float | str | None = None,
    per: str = "global",
    optimizer: str = "",
    stable: Stability | None = None,
    counted: Mapping[str, float] | None = None,
    of: str = "gradient",
) -> dict[str, Any]:
    """The ``clip`` block of run.json, its verdict included.

    A share is one of all steps where they were counted, else of recorded ones; the coefficient is the median over the steps at which the law
    changed anything (1 when it never did); ``elements`` the mean share of elements changed. A
    scope's ``share`` is its median part of the squared norm. None stands for what was not recorded.

    Args:
        gradients: columns of gradients.csv.
        algorithm: name of the clip law, "none" for no clipping.
        threshold: as configured; where it is no number (``p90``), the median in force is taken.
        per: granularity of the law.
        optimizer: its name, so that the verdict can say what to expect.
        stable: how the training went.
        counted: over every step, also those without a row: ``clip/fraction`` and ``clip/fraction/<scope>``,
            ``clip/elements``, and the number ``grad/nonfinite``.
        of: what was clipped, the gradient or the optimizer's update.
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
        optimizer=optimizer if of == "gradient" else "",
        of="" if of == "gradient" else f" of the {of}",
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
    of: str,
    stable: Stability | None,
) -> str:
    parts: list[str] = []
    if stable is not None and stable.state != "ok":
        parts.append(str(stable))
    fraction, coefficient = block["fraction"], block["coefficient"]
    threshold = "" if block["threshold"] is None else f" {short(block['threshold'])}"
    label = f"{block['algorithm']}{threshold}{of}"
    if block["algorithm"] == "none":
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
        said = f"{label} {'rescaled' if grows else 'clipped'} {percent(fraction)} of steps"
        if coefficient is not None:
            said += f", median coefficient {short(coefficient)}"
        parts.append(said)
        if is_adaptive(optimizer):
            parts.append(f"with {optimizer_label(optimizer)} expect little effect")
    if nonfinite:
        parts.append(f"{nonfinite} step{'s' if nonfinite > 1 else ''} with non-finite gradients")
    return "; ".join(parts)


def _scopes(
    gradients: Mapping[str, Array], known: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    names = scope_names(gradients)
    if not names:
        return {}
    squares = np.stack([gradients[f"grad/norm/{name}"] for name in names]) ** 2  # [S, N]
    total = squares.sum(axis=0)
    valid = np.isfinite(total) & (total > 0)
    shares = squares[:, valid] / total[valid]
    blocks: dict[str, dict[str, Any]] = {}
    for row, name in enumerate(names):
        norms = _finite(gradients[f"grad/norm/{name}"])
        values = np.percentile(norms, SPREAD_QUANTILES) if norms.size else (None,) * 3
        blocks[name] = {
            "norm": {
                f"p{quantile}": None if value is None else float(value)
                for quantile, value in zip(SPREAD_QUANTILES, values, strict=True)
            },
            "fraction": known.get(f"clip/fraction/{name}", _share(_engaged(gradients, f"/{name}"))),
            "share": float(np.median(shares[row])) if valid.any() else None,
            "payer": _median(gradients.get(f"clip/payer/{name}")),
        }
    return blocks


def _engaged(gradients: Mapping[str, Array], suffix: str) -> NDArray[np.bool_] | None:
    """Steps at which the law changed any element [N]; by the coefficient where that is all there is."""
    elements = gradients.get(f"clip/elements{suffix}")
    if elements is not None and np.isfinite(elements).any():
        return elements > 0
    coefficient = gradients.get(f"clip/coefficient{suffix}")
    if coefficient is not None and np.isfinite(coefficient).any():
        return np.abs(coefficient - 1) > 1e-6
    return None


def _collapse_bound(loss: Array) -> float:
    first = float(np.median(loss[:FIRST_STEPS]))
    # A share of a loss that may be negative means nothing; then it must only have fallen at all.
    return COLLAPSE_FACTOR * first if first > 0 else first


def _collapse(loss: Array, at: NDArray[Any], bound: float, window: int) -> Stability:
    """Where the loss rose above the bound for good, by a running median over single lucky batches."""
    window = min(window, LUCKY_WINDOW)
    below = np.flatnonzero(_running_median(loss, window) < bound)
    if below.size == 0:
        return Stability("collapsed", int(at[0]), never_learnt=True)
    # Medians [i, i + window); half of the last low one is already past the rise.
    start = int(below[-1]) + window - window // 2
    return Stability("collapsed", int(at[min(start, loss.size - 1)]))


def _first_spike(loss: Array) -> int | None:
    """First index that is over ten times the median of up to 100 losses before it."""
    suspects = np.flatnonzero(loss > loss[0])
    early = suspects[suspects < SPIKE_WINDOW]
    for index in early:
        median = float(np.median(loss[:index]))
        if median > 0 and loss[index] > SPIKE_FACTOR * median:
            return int(index)
    late = suspects[suspects >= SPIKE_WINDOW]
    if late.size == 0:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(loss, SPIKE_WINDOW)
    for begin in range(0, late.size, _CHUNK):
        index = late[begin : begin + _CHUNK]
        medians = np.median(windows[index - SPIKE_WINDOW], axis=1)
        hits = index[(medians > 0) & (loss[index] > SPIKE_FACTOR * medians)]
        if hits.size:
            return int(hits[0])
    return None


def _running_median(values: Array, window: int) -> Array:
    """Median of every full window [N - window + 1], in pieces that fit the cache."""
    windows = np.lib.stride_tricks.sliding_window_view(values, window)
    pieces = [np.median(windows[i : i + _CHUNK], axis=1) for i in range(0, len(windows), _CHUNK)]
    return np.concatenate(pieces)


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


def short(value: float) -> str:
    """A number as a sentence has it: two digits."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share as a sentence has it; never 0 or 100 by rounding."""
    points = 100 * share
    if points < 1:
        return "under 1 %"
    return f"{min(points, 99):.0f} %" if share < 1 else "100 %"
