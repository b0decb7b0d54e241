"""What a sweep says at its end: every failure, the counts, and the settings side by side."""

from __future__ import annotations

import contextlib
import shlex

from mmrun.errors import UserError
from mmrun.exits import program, say, shown
from mmrun.launch import report
from mmrun.launch.loop import Outcome
from mmrun.verbs.terminal import width

MOST_ROWS = 50  # settings that the end of a sweep shows


def closing(outcome: Outcome) -> int:
    """Say it; the exit code."""
    for line in report.closing(outcome.records, outcome.refused, outcome.lost):
        say(line)
    where = shown(outcome.directory)
    say(f"{'sweep':8} {where}\n")
    from mmrun.compare import table

    with contextlib.suppress(UserError):  # where every folder is gone there is nothing to compare
        comparison = table.compare([outcome.directory], outputs=outcome.directory.parent)
        if len(comparison.groups) <= MOST_ROWS:
            say(table.text(comparison, width=width(None)))
        else:
            say(f"{'next':8} {program()} compare {shlex.quote(where)}")
    return outcome.exit_code
