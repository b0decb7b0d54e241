"""What a sweep whose points are chosen says of its trials: at its start, and at its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrun.errors import printable
from mmrun.exits import program, shown
from mmrun.runs.study import Study

WORDS = {"running": "under way"}


def opening(study: Study, *, again: int, to_come: int, seeds: int, sampler: str) -> list[str]:
    """What there is to do, and what of it is done.

    Args:
        study: as it is now.
        again: failed trials that are tried again.
        to_come: trials that were not chosen yet.
        seeds: points of a trial.
        sampler: who chooses.
    """
    words = [*_counts(study)]
    words += [f"{again} to try again"] if again else []
    words += [f"{to_come} to come"] if to_come else []
    each = f", {seeds} points each" if seeds > 1 else ""
    way = "large" if study.maximize else "small"
    return [
        printable(f"{'trials':8} {', '.join(words)}{each}"),
        printable(f"{'':8} chosen by {sampler} for a {way} {study.metric}"),
    ]


def closing(
    study: Study, folders: Mapping[str, Path], failed: Sequence[str], stopped: str
) -> list[str]:
    """How many trials came to what, and the best.

    Args:
        study: as it is now.
        folders: {id: folder} of points.
        failed: why trials of this command failed.
        stopped: why no other trial was begun; empty where all were.
    """
    lines = [f"{'trials':8} {', '.join(_counts(study)) or 'none'}"]
    best = study.best
    if best is not None:
        values = " ".join(
            f"{key}={value if isinstance(value, str) else f'{value:.15g}'}"
            for key, value in best.params.items()
        )
        lines.append(f"{'best':8} trial {best.number}: {study.metric} {best.value:.4g}  {values}")
        lines += [f"{'':8} {folders[id].name}" for id in best.points if id in folders]
    lines += [f"{'failed':8} {reason}" for reason in dict.fromkeys(failed[-3:])]
    lines += [f"{'stopped':8} {stopped}"] if stopped else []
    if best is not None and (runs := [folders[id] for id in best.points if id in folders]):
        command = f"{program()} show {shlex.quote(shown(runs[0]))}"
        lines.append(f"{'next':8} {command}    # a point of the best trial")
    return [printable(line) for line in lines]


def _counts(study: Study) -> list[str]:
    """How many are in each state; a trial that was tried again is not counted."""
    replaced = {each.again for each in study.trials}
    states = [each.state for each in study.trials if each.number not in replaced]
    return [f"{states.count(state)} {WORDS.get(state, state)}" for state in dict.fromkeys(states)]
