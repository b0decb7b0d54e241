"""Did training stay stable? By its losses alone; numpy only."""

from __future__ import annotations

import math
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
