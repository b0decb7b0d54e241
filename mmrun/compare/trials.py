"""What to run to find out: the sweep over the candidates, and the control that tells clipping from a smaller learning rate."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmrun.compare.candidates import UPDATE, Candidate, Measured, typed
from mmrun.compare.command import key_of, variant
from mmrun.exits import program
from mmrun.runs import verdict
from mmrun.runs.layout import ID_DIGITS

SEEDS = 3
NOTICEABLE = 0.95  # above it the mean step is as good as whole: seeds would hide the rest
# What of a run's clip settings is no part of its law: how it is measured, and what a broken step does.
NO_LAW = ("clip.record_every", "clip.nonfinite", "clip.max_nonfinite")


@dataclass(frozen=True)
class Suggestion:
    """Thresholds for one run.

    Args:
        directory: the run's.
        record: its run.json.
        measured: its norms, and the candidates.
    """

    directory: Path
    record: Mapping[str, Any]
    measured: Measured


def commands(suggestion: Suggestion) -> Iterator[tuple[str, str]]:
    """(label, line to paste): the sweep, its control, how to look at both.

    Where the optimizer cancels what the sweep tries, also the run that records what ``clip.on=update`` clips.
    """
    record = suggestion.record
    sweep = f"thresholds-{record['id'][:ID_DIGITS]}"
    thresholds = ",".join(dict.fromkeys(number(c.threshold) for c in _of_all(suggestion)))
    own = [str(each) for each in record["overrides"]]
    kept = [each for each in own if key_of(each) in NO_LAW]
    if suggestion.measured.column == UPDATE:
        kept.append("clip.on=update")
    ending = (*kept, f"seeds={SEEDS}", f"sweep={sweep}")
    without = ("clip", "name")
    yield (
        "sweep",
        variant(
            {**record, "overrides": ["-m", *own]},
            f"clip=none,{thresholds}",
            *ending,
            without=without,
        ),
    )
    rates = learning_rates(record["config"])
    for values in _controls(suggestion, rates):
        yield (
            "control",
            variant(
                {**record, "overrides": ["-m", *own]},
                "clip=none",
                *values,
                *ending,
                without=(*without, *rates),
            ),
        )
    if cancels(suggestion) and "on" in _mapping(record["config"].get("clip")):
        yield "update", variant(record, "clip=none", *kept, "clip.on=update", without=without)
    outputs = [each.partition("=")[2] for each in own if key_of(each) == "outputs"]
    yield "then", f"{program()} compare {shlex.quote(str(Path(*outputs, sweep)))}"


def learning_rates(config: Mapping[str, Any]) -> dict[str, float]:
    """{key: learning rate} of the optimizer, and of the scopes that have one of their own."""
    settings = _mapping(config.get("optimizer"))
    found = {"optimizer.lr": settings.get("lr")}
    for scope, own in _mapping(settings.get("scopes")).items():
        found[f"optimizer.scopes.{scope}.lr"] = _mapping(own).get("lr")
    return {
        key: float(rate)
        for key, rate in found.items()
        if isinstance(rate, (int, float)) and np.isfinite(rate) and rate > 0
    }


def controlled(suggestion: Suggestion) -> list[Candidate]:
    """Candidates that shorten the mean step noticeably; the strongest one, where none does."""
    found = [c for c in _of_all(suggestion) if c.coefficient < 1]
    return [c for c in found if c.coefficient <= NOTICEABLE] or found[:1]


def cancels(suggestion: Suggestion) -> bool:
    """Does the optimizer undo a constant factor on what was measured?"""
    return suggestion.measured.column != UPDATE and verdict.is_adaptive(
        optimizer(suggestion.record)
    )


def diverged(record: Mapping[str, Any]) -> bool:
    """Did this run diverge, so that its longest norms are those of a divergence?"""
    return "diverged" in (record["status"], record["stability"])


def optimizer(record: Mapping[str, Any]) -> str:
    """The class of a run's optimizer, as its config names it."""
    return str(_mapping(record["config"].get("optimizer")).get("_target_", ""))


def _controls(suggestion: Suggestion, rates: Mapping[str, float]) -> Iterator[list[str]]:
    """Overrides of each control; several learning rates move together, thus in lines of their own."""
    chosen = controlled(suggestion)
    if not rates or not chosen:
        return
    lowered = [
        {key: number(typed(rate * c.coefficient)) for key, rate in rates.items()} for c in chosen
    ]
    if len(rates) == 1:
        (key,) = rates
        yield [f"{key}={','.join(dict.fromkeys(each[key] for each in lowered))}"]
        return
    for each in lowered:
        yield [f"{key}={rate}" for key, rate in each.items()]


def _of_all(suggestion: Suggestion) -> tuple[Candidate, ...]:
    return suggestion.measured.everything.candidates


def number(value: float) -> str:
    """A number as one would type it: 0.5, 1230, 1e-05."""
    return f"{value:.15g}"


def _mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
