"""Which clip thresholds are worth trying? The text of ``mmrun suggest RUN``, from the norms that a run recorded.

``candidates`` has the numbers, ``advice`` what they mean, ``trials`` the sweep that tries them and its control.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mmrun.compare import formats
from mmrun.compare.advice import heading, notes, percent
from mmrun.compare.candidates import QUANTILES, Candidate, Measured, Scope, measure
from mmrun.compare.trials import Suggestion, commands, diverged, number
from mmrun.errors import UserError, printable
from mmrun.exits import program
from mmrun.runs.layout import Paths
from mmrun.runs.reader import read
from mmrun.runs.record import UNREADABLE
from mmrun.runs.table import read_columns

EVERYTHING = "all scopes"


def suggest(directory: Path) -> Suggestion:
    """Thresholds worth trying, from what a run has recorded so far.

    Raises:
        UserError: run.json cannot be read, or no norm has been recorded.
    """
    record = read(directory)
    if record["status"] == UNREADABLE:
        raise UserError(record["error"], given=directory)
    columns = read_columns(Paths(directory).gradients)
    if not columns:
        raise _nothing("this run has no gradients.csv", directory, record)
    if not next(iter(columns.values())).size:
        raise _nothing("gradients.csv has no rows", directory, record)
    return Suggestion(directory, record, measure(columns, diverged=diverged(record)))


def _nothing(problem: str, directory: Path, record: Mapping[str, Any]) -> UserError:
    """Why nothing was recorded, and whether it is worth waiting for."""
    status = str(record["status"])
    if status in ("queued", "running"):
        remedy = "Rows are written at every validation: ask again after the first."
        return UserError(f"{problem} yet", given=f"{directory}, {status}", remedy=remedy)
    clip = record["config"].get("clip")
    every = cast("dict[str, Any]", clip).get("record_every") if isinstance(clip, dict) else None
    if isinstance(every, int) and every > 1:
        remedy = f"It recorded every {every}th step alone: train it with clip.record_every=1."
    else:
        remedy = f"It ended before a step was recorded: {program()} show tells how; train it again."
    return UserError(problem, given=f"{directory}, {status}", remedy=remedy)


def text(
    suggestion: Suggestion, *, format: str = "table", width: int | None = None, color: bool = False
) -> str:
    """A suggestion in a format.

    Args:
        suggestion: what ``suggest`` found.
        format: one of table, md, csv, json, latex.
        width: columns of the terminal; None for lines as long as they need to be.
        color: whether to write terminal colours.

    Raises:
        UserError: there is no such format.
    """
    formats.check(format)
    if format == "csv":
        return _csv(suggestion.measured)
    lines = list(commands(suggestion))
    if format == "json":
        return _json(suggestion, lines)
    columns = _columns(suggestion.measured)
    above, below = heading(suggestion), notes(suggestion)
    if format == "latex":
        return formats.latex(columns, [above, *below, *(line for _, line in lines)])
    if format == "md":
        block = "\n".join(printable(line) for _, line in lines)
        return f"{formats.markdown(columns, [above, *below])}\n\n```bash\n{block}\n```"
    return "\n".join(
        [
            *_wrapped(above, width),
            "",
            formats.plain(columns, [], width=width, color=color),
            *(line for note in below for line in _wrapped(note, width, "- ")),
            "",
            # Commands go out unwrapped, so that they can be copied.
            *(f"{label:8} {printable(line)}" for label, line in lines),
        ]
    )


def _columns(measured: Measured) -> list[formats.Column]:
    """Three lines per scope, a column per percentile."""
    rows = [measured.everything, *measured.scopes]
    labels = ("threshold", "steps clipped", "mean coefficient")
    cells: dict[str, list[str]] = {f"p{quantile}": [] for quantile in QUANTILES}
    for scope in rows:
        found = {each.name: each for each in scope.candidates}
        for name, column in cells.items():
            column += _cells(found.get(name))
    blanks = ["", ""]
    return [
        formats.Column("scope", [w for s in rows for w in (s.name or EVERYTHING, *blanks)]),
        formats.Column("norm²", [w for s in rows for w in (percent(s.share), *blanks)], right=True),
        formats.Column("", [label for _ in rows for label in labels]),
        *(formats.Column(name, column, right=True) for name, column in cells.items()),
    ]


def _cells(candidate: Candidate | None) -> tuple[str, str, str]:
    if candidate is None:
        return ("-", "-", "-")
    return (
        number(candidate.threshold),
        percent(candidate.clipped),
        f"{candidate.coefficient:.3f}",
    )


def _csv(measured: Measured) -> str:
    titles = ("scope", "share", "candidate", "threshold", "clipped", "coefficient", "steps")
    return formats.csv_of(
        titles,
        (
            (
                scope.name or EVERYTHING,
                scope.share,
                each.name,
                each.threshold,
                each.clipped,
                each.coefficient,
                scope.norms.size,
            )
            for scope in (measured.everything, *measured.scopes)
            for each in scope.candidates
        ),
    )


def _json(suggestion: Suggestion, lines: list[tuple[str, str]]) -> str:
    measured, record = suggestion.measured, suggestion.record

    def block(scope: Scope) -> dict[str, Any]:
        return {
            "share": scope.share,
            "vanishing": scope.vanishing,
            "steps": scope.norms.size,
            "candidates": {
                each.name: {
                    "threshold": each.threshold,
                    "clipped": each.clipped,
                    "coefficient": each.coefficient,
                }
                for each in scope.candidates
            },
        }

    return formats.json_of(
        {
            "run": str(suggestion.directory),
            "status": record["status"],
            "measured": measured.column,
            "last_step": measured.last_step,
            "nonfinite": measured.nonfinite,
            "exploded": measured.exploded,
            "all": block(measured.everything),
            "scopes": {scope.name: block(scope) for scope in measured.scopes},
            "notes": [heading(suggestion), *notes(suggestion)],
            "commands": [{"what": label, "command": line} for label, line in lines],
        }
    )


def _wrapped(text: str, width: int | None, bullet: str = "") -> list[str]:
    line = bullet + printable(text)
    if width is None:
        return [line]
    return textwrap.wrap(
        line, max(width, 20), subsequent_indent=" " * len(bullet), break_on_hyphens=False
    )
