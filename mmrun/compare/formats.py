"""A table as a terminal, a page, a paper or a program wants it; no text in it can do harm there."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mmrun.compare.collect import Absent, said
from mmrun.compare.groups import Group
from mmrun.compare.laws import holds_law
from mmrun.errors import UserError, nearest, printable, shortened
from mmrun.runs.record import STATUSES

FORMATS = ("table", "md", "csv", "json", "latex")
STABILITIES = ("ok", "spiked", "collapsed", "diverged")
_GAP = "  "
LONGEST_CELL = 60  # columns of one setting; csv, json, md and latex hold it whole
_NARROWEST = 6  # columns; below it a terminal had better wrap than a cell
_DIM, _BOLD, _YELLOW, _RED, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
_MARKDOWN = re.compile(r"[\\`*\[\]<>|$~#]|(?<![^\W_])_|_(?![^\W_])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}


def check(format: str) -> None:
    """Raise UserError unless there is such a format."""
    if format not in FORMATS:
        raise UserError("there is no such format", given=format, remedy=nearest(format, FORMATS))


@dataclass(frozen=True)
class Column:
    """A column of text; numbers stand right and are never broken into lines, settings may be cut."""

    title: str
    cells: Sequence[str]
    right: bool = False
    setting: bool = False


def plain(
    columns: Sequence[Column],
    notes: Sequence[str],
    following: str = "",
    *,
    width: int | None = None,
    color: bool = False,
) -> str:
    """Aligned columns; where they are wider than the terminal, words go onto further lines.

    Args:
        columns: the table.
        notes: lines below it, wrapped to the width.
        following: the last line, never wrapped, so that it can be copied.
        width: columns of the terminal; None for as many as it takes.
        color: whether to write terminal colours.
    """
    titles = [shortened(printable(column.title), LONGEST_CELL) for column in columns]
    bodies = [[printable(cell) for cell in column.cells] for column in columns]
    for column, body in zip(columns, bodies, strict=True):
        if column.setting:
            body[:] = (shortened(cell, LONGEST_CELL) for cell in body)
    widths, gap = _widths(titles, bodies, [column.right for column in columns], width)
    lines: list[str] = []

    def add(cells: Sequence[str], styles: Sequence[str], breaks: re.Pattern[str]) -> None:
        folded = [_folded(cell, width, breaks) for cell, width in zip(cells, widths, strict=True)]
        for k in range(max(map(len, folded), default=0)):
            parts = [
                _padded(each[k] if k < len(each) else "", width, column.right, style)
                for each, width, column, style in zip(folded, widths, columns, styles, strict=True)
            ]
            lines.append(gap.join(parts).rstrip())

    add(titles, [_DIM if color else ""] * len(columns), _IN_TITLES)
    for cells in zip(*bodies, strict=True):
        add(cells, [_style(cell) if color else "" for cell in cells], _IN_CELLS)
    lines.append("")
    for note in map(printable, notes):
        lines += [note] if width is None else textwrap.wrap(note, max(width, 20))
    if following:
        lines.append(printable(following))
    return "\n".join(lines)


def markdown(columns: Sequence[Column], notes: Sequence[str]) -> str:
    """A GitHub table, and a list of notes."""

    def escaped(text: str) -> str:
        text = printable(text).replace("&", "&amp;")
        return _MARKDOWN.sub(lambda found: "\\" + found[0], text)

    lines = [
        _row(escaped(column.title) for column in columns),
        _row("---:" if column.right else "---" for column in columns),
        *(_row(map(escaped, cells)) for cells in zip(*(c.cells for c in columns), strict=True)),
        "",
        *(f"- {escaped(note)}" for note in notes),
    ]
    return "\n".join(lines)


def latex(columns: Sequence[Column], notes: Sequence[str]) -> str:
    """A tabular of the booktabs package, and the notes as comments."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(each, each) for each in printable(text))

    def line(cells: Sequence[str]) -> str:
        # A rule and the end of a row take what follows in brackets, or a star, for their own.
        text = re.sub(r"^(\s*)([\[*])", r"\1{\2}", " & ".join(map(escaped, cells)))
        return text + r" \\"

    lines = [
        r"% \usepackage{booktabs}",
        *(f"% {printable(note)}" for note in notes),
        rf"\begin{{tabular}}{{{''.join('r' if column.right else 'l' for column in columns)}}}",
        r"\toprule",
        line([column.title for column in columns]),
        r"\midrule",
        *(line(cells) for cells in zip(*(column.cells for column in columns), strict=True)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def csv(keys: Sequence[str], metrics: Sequence[str], groups: Sequence[Group]) -> str:
    """One line per setting, numbers in full; an empty cell is what is not there.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    parts = ("mean", "sd", "n")
    titles = [
        *keys,
        "n",
        *STATUSES,
        *(f"stability {name}" for name in STABILITIES),
        *(f"{name} {part}" for name in metrics for part in parts),
        "pooled",
        "chosen_among",
        "best_run",
    ]
    rows: list[list[Any]] = []
    for group in groups:
        settings = (group.settings[key] for key in keys)
        scores = [group.scores[name] for name in metrics]
        rows.append(
            [
                *("" if isinstance(each, Absent) else said(each) for each in settings),
                group.n,
                *(group.statuses[name] for name in STATUSES),
                *(group.stabilities[name] for name in STABILITIES),
                *(value for score in scores for value in (score.mean, score.sd, score.n)),
                " ".join(group.pooled),
                group.chosen_among,
                str(group.rows[0].directory),
            ]
        )
    return csv_of(titles, rows)


def json(facts: Mapping[str, Any], groups: Sequence[Group]) -> str:
    """Everything, as strict JSON: what is no number is null."""
    content = {
        **facts,
        "groups": [
            {
                "settings": {
                    key: said(value) if holds_law(value) else value
                    for key, value in group.settings.items()
                },
                "n": group.n,
                "status": dict(group.statuses),
                "stability": dict(group.stabilities),
                "scores": {
                    name: {"mean": score.mean, "sd": score.sd, "n": score.n}
                    for name, score in group.scores.items()
                },
                "pooled": group.pooled,
                "chosen_among": group.chosen_among,
                "runs": [str(row.directory) for row in group.rows],
            }
            for group in groups
        ],
    }
    return json_of(content)


def csv_of(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV; None is an empty cell, and no text is a formula."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    for row in (titles, *rows):
        writer.writerow([_harmless(each) if isinstance(each, str) else each for each in row])
    return out.getvalue().rstrip("\n")


def json_of(content: Mapping[str, Any]) -> str:
    """Strict JSON: what is no number is null."""
    return json_module.dumps(_strict(content), indent=1, allow_nan=False)


# Where a title or a cell may be broken: after the mark, but a key's dot goes with what follows.
_IN_TITLES = re.compile(r"(?<=[/_ ])|(?=\.)")
_IN_CELLS = re.compile(r"(?<=, )|(?<=,)(?! )|(?<=[/_])")
_ANYWHERE = re.compile(r"(?<=[ ,/_])")


def _widths(
    titles: Sequence[str],
    bodies: Sequence[Sequence[str]],
    right: Sequence[bool],
    width: int | None,
) -> tuple[list[int], str]:
    """Width of each column, all that it wants or less of the widest until the table fits; the gap between."""
    wanted = [max(map(len, [t, *body])) for t, body in zip(titles, bodies, strict=True)]
    if width is None:
        return wanted, _GAP

    def floors(breaks: re.Pattern[str]) -> list[int]:
        return [
            max(
                _longest(title, _IN_TITLES),
                max((len(c) if fixed else _longest(c, breaks) for c in body), default=0),
            )
            for title, body, fixed in zip(titles, bodies, right, strict=True)
        ]

    least, words = floors(_IN_CELLS), floors(_ANYWHERE)
    torn = [n if fixed else min(n, _NARROWEST) for n, fixed in zip(words, right, strict=True)]
    gaps = len(titles) - 1
    # Columns closer together are read more easily than broken words.
    gap = _GAP if sum(least) + len(_GAP) * gaps <= width else " "
    room = width - len(gap) * gaps
    for limits in (least, words, torn):
        while sum(wanted) > room:
            slack = [have - floor for have, floor in zip(wanted, limits, strict=True)]
            if max(slack, default=0) <= 0:
                break
            widest = max(range(len(wanted)), key=lambda k: (slack[k] > 0, wanted[k]))
            wanted[widest] -= 1
    return wanted, gap


def _longest(text: str, breaks: re.Pattern[str]) -> int:
    return max(len(part.rstrip()) for part in breaks.split(text))


def _folded(text: str, width: int, breaks: re.Pattern[str]) -> list[str]:
    """A cell in lines of a width: broken where it may be, and where it must be."""
    if len(text) <= width:
        return [text]
    lines = [""]
    parts = breaks.split(text)
    if _longest(text, breaks) > width:
        parts = [word for part in parts for word in _ANYWHERE.split(part)]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]


def _padded(text: str, width: int, right: bool, style: str) -> str:
    padded = text.rjust(width) if right else text.ljust(width)
    return f"{style}{padded}{_PLAIN}" if style and text else padded


def _style(cell: str) -> str:
    if any(word in cell for word in ("diverged", "failed", "killed")):
        return _RED
    return _YELLOW if any(word in cell for word in ("collapsed", "spiked")) else ""


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _harmless(text: str) -> str:
    text = printable(text)
    if text[:1] in ("=", "+", "-", "@"):
        try:
            float(text)
        except ValueError:
            return f"'{text}"
    return text


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in cast("Sequence[Any]", value)]
    if isinstance(value, Absent) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
