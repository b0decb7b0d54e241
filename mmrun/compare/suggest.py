"""Which clip thresholds are worth trying? The text of ``mmrun suggest RUN``, from the norms that a run recorded.

``candidates`` has the numbers. Here is what they mean, the sweep that tries them, and the control that
tells clipping from a smaller learning rate.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmrun.compare import formats
from mmrun.compare.candidates import (
    QUANTILES,
    UPDATE,
    VANISHING,
    Candidate,
    Measured,
    Scope,
    early_and_late,
    measure,
    spread,
    typed,
)
from mmrun.compare.command import key_of, variant
from mmrun.compare.table import FORMATS
from mmrun.errors import UserError, nearest, printable
from mmrun.exits import program, shown
from mmrun.runs import verdict
from mmrun.runs.layout import ID_DIGITS, Paths
from mmrun.runs.reader import read
from mmrun.runs.record import UNREADABLE
from mmrun.runs.table import read_columns

EVERYTHING = "all scopes"
SEEDS = 3
NOTICEABLE = (
    0.95  # a mean coefficient above it is a change of the learning rate that seeds would hide
)
WIDE = 100.0  # p99 / p50 above it: no fixed threshold suits
DRIFTED = 3.0  # between the medians of the first tenth of the steps and of the last half
FEW = 100  # steps, of which p99 is the longest one
# What of a run's clip settings is no part of its law: how it is measured, and what a broken step does.
_NO_LAW = ("clip.record_every", "clip.nonfinite", "clip.max_nonfinite")


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
        raise UserError(
            "this run has no gradients.csv yet",
            given=f"{directory}, {record['status']}",
            remedy="It is written while a run trains.",
        )
    return Suggestion(directory, record, measure(columns))


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
    if format not in FORMATS:
        raise UserError("there is no such format", given=format, remedy=nearest(format, FORMATS))
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


def heading(suggestion: Suggestion) -> str:
    """What was measured, over how many steps, of which run."""
    record, measured = suggestion.record, suggestion.measured
    n_rows = measured.everything.norms.size + measured.nonfinite
    what = "norms of the update" if measured.column == UPDATE else "raw gradient norms"
    steps = f"{n_rows} of {measured.last_step}" if n_rows < measured.last_step else str(n_rows)
    going = " so far" if record["status"] == "running" else ""
    out = f"; {measured.nonfinite} not finite, left out" if measured.nonfinite else ""
    where = shown(suggestion.directory.absolute())
    unit = "step" if n_rows == measured.last_step == 1 else "steps"
    return f"{what} before clipping, over {steps} {unit}{going}{out}; {where}"


def notes(suggestion: Suggestion) -> list[str]:
    """What the numbers mean, a sentence or two per line."""
    measured = suggestion.measured
    n = measured.everything.norms.size
    few = f"few steps, {n}: p95 and p99 hang on one or two of them" if n < FEW else ""
    said = [
        _meaning(measured),
        few,
        _spread(measured),
        _drift(measured),
        _trained(suggestion.record),
        _vanishing(measured),
        _of_a_scope(measured),
        _adaptive(suggestion),
        _control(suggestion),
    ]
    return [line for line in said if line]


def commands(suggestion: Suggestion) -> Iterator[tuple[str, str]]:
    """(label, line to paste): the sweep, its control, how to look at both.

    Where the optimizer cancels what the sweep tries, also the run that records what ``clip.on=update`` clips.
    """
    record = suggestion.record
    sweep = f"thresholds-{record['id'][:ID_DIGITS]}"
    thresholds = ",".join(dict.fromkeys(_number(c.threshold) for c in _of_all(suggestion)))
    own = [str(each) for each in record["overrides"]]
    kept = [each for each in own if key_of(each) in _NO_LAW]
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
    if _cancels(suggestion) and "on" in _mapping(record["config"].get("clip")):
        yield "update", variant(record, "clip=none", *kept, "clip.on=update", without=without)
    outputs = [each.partition("=")[2] for each in own if key_of(each) == "outputs"]
    yield "then", f"{program()} compare {shlex.quote(str(Path(*outputs, sweep)))}"


def learning_rates(config: Mapping[str, Any]) -> dict[str, float]:
    """{key: learning rate} of the optimizer, and of the scopes that have one of their own."""
    optimizer = _mapping(config.get("optimizer"))
    found = {"optimizer.lr": optimizer.get("lr")}
    for scope, settings in _mapping(optimizer.get("scopes")).items():
        found[f"optimizer.scopes.{scope}.lr"] = _mapping(settings).get("lr")
    return {
        key: float(rate)
        for key, rate in found.items()
        if isinstance(rate, (int, float)) and np.isfinite(rate) and rate > 0
    }


def controlled(suggestion: Suggestion) -> list[Candidate]:
    """Candidates that shorten the mean step noticeably; the strongest one, where none does."""
    found = [c for c in _of_all(suggestion) if c.coefficient < 1]
    return [c for c in found if c.coefficient <= NOTICEABLE] or found[:1]


def _controls(suggestion: Suggestion, rates: Mapping[str, float]) -> Iterator[list[str]]:
    """Overrides of each control; several learning rates move together, thus in lines of their own."""
    chosen = controlled(suggestion)
    if not rates or not chosen:
        return
    lowered = [
        {key: _number(typed(rate * c.coefficient)) for key, rate in rates.items()} for c in chosen
    ]
    if len(rates) == 1:
        (key,) = rates
        yield [f"{key}={','.join(dict.fromkeys(each[key] for each in lowered))}"]
        return
    for each in lowered:
        yield [f"{key}={rate}" for key, rate in each.items()]


def _meaning(measured: Measured) -> str:
    """A mild threshold and the hardest one."""
    *_, longest = found = measured.everything.candidates
    hard, mild = found[0], next((each for each in found if each.name == "p90"), longest)
    said = (
        f"{mild.name}, {_number(mild.threshold)}, would have clipped {_percent(mild.clipped)} of steps "
        f"and left the mean step {_share(mild.coefficient)} of its length"
    )
    if hard.threshold == mild.threshold:
        return said
    return (
        f"{said}: it cuts the longest; {hard.name}, {_number(hard.threshold)}, would have left "
        f"{_share(hard.coefficient)}, which is nearer to a smaller learning rate"
    )


def _spread(measured: Measured) -> str:
    ratio = spread(measured.everything.norms)
    if ratio <= WIDE:
        return ""
    far = f"{_short(ratio)} times p50" if np.isfinite(ratio) else "above a p50 of 0"
    return (
        f"p99 is {far}: the norms have no common size, and no fixed threshold suits most steps; "
        "try a law that follows them (mmrun list clip)"
    )


def _drift(measured: Measured) -> str:
    """Is it one training or two? The first steps often have far longer gradients than the rest."""
    first, last = early_and_late(measured.everything.norms)
    if not first.size:
        return ""
    before, after = float(np.median(first)), float(np.median(last))
    if max(before, after) <= DRIFTED * min(before, after):
        return ""
    low, high, top = (_short(float(value)) for value in np.percentile(last, (50, 90, 100)))
    moved = f"median norm {_short(before)} in the first tenth, {_short(after)} in the last half"
    if before > after:
        return (
            f"{moved}: a threshold above {top} acts in the first half alone; to act later too, take one "
            f"from {low} to {high} (p50 and p90 of that half)"
        )
    return (
        f"{moved}: a fixed threshold clips more and more; to spare most late steps, take {high} "
        "or more (p90 of that half)"
    )


def _trained(record: Mapping[str, Any]) -> str:
    """Under which law these norms came about: another one trains along another path."""
    choice = str(record["choices"].get("clip", "none"))
    said = "another threshold trains along another path, with other norms: this is where to look"
    if choice != "none":
        words = [f"clip={choice}", *_law_of_its_own(record)]
        said = f"the norms are raw ones of a training that was clipped by {' '.join(words)}; {said}"
    if record["stability"] == "diverged":
        said += "; it diverged, and the longest norms are part of that: look at p50 to p90"
    return said


def _law_of_its_own(record: Mapping[str, Any]) -> list[str]:
    """What the user set of the law beside its threshold, which the choice tells."""
    own = [str(each) for each in record["overrides"]]
    told = ("clip.threshold", *_NO_LAW)
    return [o for o in own if key_of(o).startswith("clip.") and key_of(o) not in told]


def _vanishing(measured: Measured) -> str:
    gone = [scope for scope in measured.scopes if scope.vanishing]
    if not gone:
        return ""
    listed = ", ".join(f"{scope.name} ({scope.share:.1g})" for scope in gone)
    return (
        f"vanishing, below {VANISHING} of the squared norm: {listed}; no threshold on all scopes "
        "together acts for such a scope's sake: does it learn at all?"
    )


def _of_a_scope(measured: Measured) -> str:
    able = [scope for scope in measured.scopes if scope.candidates]
    if not able:
        return ""
    largest = max(able, key=lambda scope: scope.share)
    threshold = _number(largest.candidates[-1].threshold)
    return (
        "for a scope's own threshold: clip=norm clip.per=modality clip.budget=each "
        f"clip.scopes.{largest.name}.threshold={threshold}"
    )


def _adaptive(suggestion: Suggestion) -> str:
    if not _cancels(suggestion):
        return ""
    return (
        f"with {verdict.optimizer_label(_optimizer(suggestion.record))} a constant factor on the gradient "
        "cancels: expect its clipping to do little; clip.on=update clips the step itself (suggest on "
        "such a run takes the norms of steps)"
    )


def _cancels(suggestion: Suggestion) -> bool:
    """Does the optimizer undo a constant factor on what was measured?"""
    return suggestion.measured.column != UPDATE and verdict.is_adaptive(
        _optimizer(suggestion.record)
    )


def _optimizer(record: Mapping[str, Any]) -> str:
    return str(_mapping(record["config"].get("optimizer")).get("_target_", ""))


def _control(suggestion: Suggestion) -> str:
    """What the control is, and what follows from it."""
    chosen, rates = controlled(suggestion), learning_rates(suggestion.record["config"])
    if not chosen:
        return ""
    if not rates:
        return "no control: the run's config names no learning rate"
    rate, hard = next(iter(rates.values())), chosen[0]
    said = (
        "control, is it only a smaller learning rate? no clipping at lr x mean coefficient, "
        f"{_number(rate)} x {_share(hard.coefficient)} for {hard.name} (not the median: it is 1 where "
        "at most half of the steps are clipped); if that does as well, it was"
    )
    if hard.coefficient > NOTICEABLE:
        off = _percent(1 - hard.coefficient)
        said += f"; here that is {off} less, which seeds will hide"
    return said


def _of_all(suggestion: Suggestion) -> tuple[Candidate, ...]:
    return suggestion.measured.everything.candidates


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
        formats.Column(
            "norm²", [w for s in rows for w in (_percent(s.share), *blanks)], right=True
        ),
        formats.Column("", [label for _ in rows for label in labels]),
        *(formats.Column(name, column, right=True) for name, column in cells.items()),
    ]


def _cells(candidate: Candidate | None) -> tuple[str, str, str]:
    if candidate is None:
        return ("-", "-", "-")
    return (
        _number(candidate.threshold),
        _percent(candidate.clipped),
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
            "all": block(measured.everything),
            "scopes": {scope.name: block(scope) for scope in measured.scopes},
            "notes": [heading(suggestion), *notes(suggestion)],
            "commands": [{"what": label, "command": line} for label, line in lines],
        }
    )


def _number(value: float) -> str:
    """A number as one would type it: 0.5, 1230, 1e-05."""
    return f"{value:.15g}"


def _short(value: float) -> str:
    return _number(typed(value))


def _share(value: float) -> str:
    return f"{value:.2f}"


def _percent(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 0.1:
        return "<0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 0.95 else f"{percent:.0f} %"


def _wrapped(text: str, width: int | None, bullet: str = "") -> list[str]:
    line = bullet + printable(text)
    if width is None:
        return [line]
    return textwrap.wrap(
        line, max(width, 20), subsequent_indent=" " * len(bullet), break_on_hyphens=False
    )


def _mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
