"""What a sweep says at its end: the counts, every failure, the points, the settings side by side, and the best point or trial."""

from __future__ import annotations

import contextlib
import shlex
from typing import Any

from mmrun.errors import UserError
from mmrun.exits import program, say, shown
from mmrun.launch import report
from mmrun.launch.loop import Outcome
from mmrun.verbs.terminal import colored, width

MOST_POINTS = 100  # that the end of a sweep shows one by one
MOST_ROWS = 50  # settings that it shows


def closing(outcome: Outcome) -> int:
    """Say it; the exit code."""
    for line in report.closing(outcome.records, outcome.refused, outcome.lost):
        say(line)
    where = shown(outcome.directory)
    say(f"{'sweep':8} {where}\n")
    from mmrun.compare import points, table

    best = outcome.trials or report.winner(outcome.records)
    style: dict[str, Any] = {"width": width(None), "color": colored()}
    with contextlib.suppress(UserError):  # where every folder is gone there is nothing to compare
        comparison = table.compare([outcome.directory], outputs=outcome.directory.parent)
        runs = sum(len(group.rows) for group in comparison.groups)
        # Where every setting is one point, the settings are the points.
        if len(outcome.records) <= MOST_POINTS and len(comparison.groups) < runs:
            say(points.text(outcome.records.values(), **style) + "\n")
        if len(comparison.groups) <= MOST_ROWS:
            say(table.text(comparison, **style, following="" if best else None))
        else:
            say(f"{'settings':8} {program()} compare {shlex.quote(where)}")
    if best:
        say("\n" + "\n".join(best))
    if outcome.exit_code:
        say(f"{'again':8} {report.resuming(outcome.directory)}    # what has no result")
    return outcome.exit_code
