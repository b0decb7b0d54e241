"""How do the settings compare? The table of ``mmrun compare``, as text in every format.

    text(compare(["outputs/my-sweep"], outputs=Path("outputs")), width=100)    # what a terminal shows

``collect`` reads the runs and finds the settings in which they differ, ``where`` filters, ``metrics``
says which numbers, ``groups`` averages and orders, ``formats`` writes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrun.compare import formats
from mmrun.compare.collect import ENDED, Collected, Row, collect, differing, known_keys, said
from mmrun.compare.groups import Group, Spread, groups, selected
from mmrun.compare.metrics import TEST_LAST, Metric, metric, score
from mmrun.compare.where import where
from mmrun.errors import UserError, nearest, printable
from mmrun.exits import program

SELECTIONS = ("val",)
_PLUS_MINUS = " ± "


@dataclass(frozen=True)
class Comparison:
    """Settings compared: what every format, figure and page shows.

    Args:
        by: the keys that make a row; with ``select``, those for each value of which one was chosen.
        keys: all keys that a row shows: ``by`` and what was chosen.
        metric: what is compared.
        groups: one per row, best first by validation.
        selected: whether each row is a setting that validation chose.
        collected: the runs, and what of the paths is none.
    """

    by: tuple[str, ...]
    keys: tuple[str, ...]
    metric: Metric
    groups: tuple[Group, ...]
    selected: bool
    collected: Collected

    @property
    def pooled(self) -> tuple[str, ...]:
        """Keys beside the seeds in which runs of one row differ."""
        return tuple(dict.fromkeys(key for group in self.groups for key in group.pooled))


def compare(
    paths: Sequence[str | Path],
    *,
    outputs: Path,
    by: Sequence[str] | None = None,
    asked: str | None = None,
    conditions: Sequence[str] = (),
    select: str | None = None,
) -> Comparison:
    """Compare the settings of the runs at these paths.

    Args:
        paths: runs, sweeps, folders of runs, their names, or ``last``; all of ``outputs`` if empty.
        outputs: the root of all runs.
        by: keys that make a row; by default everything that differs but the seeds.
        asked: the metric, by default the first beside the loss that test reports.
        conditions: which runs, as in ``--where``.
        select: ``val``: of the settings of each row the one that validation finds best.

    Raises:
        UserError: nothing to compare, or a key, metric or condition that no run has.
    """
    if select is not None and select not in SELECTIONS:
        raise UserError(
            "settings are chosen on validation",
            given=f"--select {select}",
            remedy="Write --select val.",
        )
    collected = collect([str(path) for path in paths], outputs)
    rows = where(collected.rows, conditions)
    differ = differing(rows) if rows else []
    if by is not None:
        known = known_keys(rows)
        for key in by:
            if key not in known:
                raise UserError("no run has this setting", given=key, remedy=nearest(key, known))
    what = metric(rows, asked)
    if select is None:
        keys = by_keys = tuple(dict.fromkeys(differ if by is None else by))
        found = groups(rows, keys, differ, what)
    else:
        by_keys = tuple(dict.fromkeys(by or ()))
        if all(score(row, what.order, higher=what.higher) is None for row in rows):
            raise UserError(
                f"no run that ended has {what.order}: there is nothing to choose by",
                given=f"--select {select}",
            )
        found = selected(rows, by_keys, differ, what)
        keys = (*by_keys, *(key for key in differ if key not in by_keys))
    return Comparison(by_keys, keys, what, tuple(found), select is not None, collected)


def text(
    comparison: Comparison,
    *,
    format: str = "table",
    width: int | None = None,
    color: bool = False,
    following: str | None = None,
) -> str:
    """A comparison in a format.

    Args:
        comparison: what ``compare`` found.
        format: one of table, md, csv, json, latex.
        width: columns of the terminal; None for lines as long as they need to be.
        color: whether to write terminal colours.
        following: the last line of a table; by default ``next_command``.

    Raises:
        UserError: there is no such format.
    """
    formats.check(format)
    if format == "csv":
        return formats.csv(comparison.keys, comparison.metric.shown, comparison.groups)
    if format == "json":
        return formats.json(
            {
                "by": comparison.by,
                "keys": comparison.keys,
                "selected": comparison.selected,
                "order": comparison.metric.order,
                "higher_is_better": comparison.metric.higher,
                "metric": comparison.metric.asked,
                "repeats_left_out": comparison.collected.repeats,
                "unreadable": {str(k): v for k, v in comparison.collected.unreadable.items()},
                "notes": notes(comparison),
            },
            comparison.groups,
        )
    columns = _columns(comparison)
    said_below = [*notes(comparison), *_unreadable(comparison)]
    if format == "md":
        return formats.markdown(columns, said_below)
    if format == "latex":
        return formats.latex(columns, said_below)
    following = next_command(comparison) if following is None else following
    return formats.plain(columns, said_below, following, width=width, color=color)


def notes(comparison: Comparison) -> list[str]:
    """What one must know to read the numbers, a sentence or two per line."""
    what = comparison.metric
    several = any(group.n > 1 for group in comparison.groups)
    pooled = comparison.pooled
    over = "runs" if pooled else "seeds"
    best = "highest" if what.higher else "lowest"
    diverged = any(group.stabilities["diverged"] for group in comparison.groups)
    lost = any(0 < group.n == len(group.diverged) for group in comparison.groups)
    always = ""
    if lost and len(comparison.groups) > 1:
        always = " but for settings that always diverged"
    lines = [
        (f"mean ± sample sd over {over}; " if several else "")
        + "n: runs that ended"
        + (", diverged ones with the scores that they recorded" if diverged else ""),
        f"{what.order}: each run's {best} over training, best first{always}; "
        + f"test: at the best checkpoint{_monitor(comparison.groups)}, {TEST_LAST}: at the last step",
    ]
    if comparison.selected:
        per = f"for each {', '.join(comparison.by)} " if comparison.by else ""
        lines.append(
            f"{per}the setting with the best mean {what.order}, chosen from as many as 'of' says, "
            "one with a diverged run only where there is no other; test took no part"
        )
    if pooled:
        lines.append(f"pooled: runs of one row differ in {', '.join(pooled)}")
    if comparison.collected.repeats:
        n = comparison.collected.repeats
        lines.append(
            f"{n} run{' repeats' if n == 1 else 's repeat'} the config and seed of a newer one: left out"
        )
    return lines


def next_command(comparison: Comparison) -> str:
    """What to type next: look at the best run of the best setting, or at what went wrong.

    A setting of which a run diverged is never offered as the best, however good it was before.
    """
    if not comparison.groups:
        return ""
    ended = [group for group in comparison.groups if group.n]
    sound = [group for group in ended if not group.diverged]
    if sound:
        which = "setting" if sound[0] is ended[0] else "setting in which none diverged"
        return f"next  {_show(sound[0].rows[0])}    # best run of the best {which}"
    if ended:
        said_of = "in every setting a run diverged; this one did"
        return f"next  {_show(ended[0].diverged[0])}    # {said_of}"
    rows = [row for group in comparison.groups for row in group.rows]
    for row in rows:
        if row.status in ("failed", "killed"):
            return f"next  {_show(row)}    # it {row.status if row.status == 'failed' else 'was killed'}"
    return "none of these runs has ended yet"


def _show(row: Row) -> str:
    path = os.path.relpath(row.directory)
    path = str(row.directory) if path.startswith("..") else path
    return f"{program()} show {shlex.quote(path)}"


def _columns(comparison: Comparison) -> list[formats.Column]:
    found = comparison.groups
    columns = [
        formats.Column(key, [said(group.settings[key]) for group in found], setting=True)
        for key in comparison.keys
    ]
    if comparison.selected:
        columns.append(_numbers("of", [str(group.chosen_among) for group in found]))
    columns.append(_numbers("n", [str(group.n) for group in found]))
    if any(row.status not in ENDED for group in found for row in group.rows):
        columns.append(formats.Column("status", [_counts(group.statuses) for group in found]))
    columns.append(formats.Column("stability", [_counts(group.stabilities) for group in found]))
    for name in comparison.metric.shown:
        spreads = [group.scores[name] for group in found]
        if name != comparison.metric.order and not any(each.n for each in spreads):
            continue
        decimals = _decimals(spreads)
        cells = [
            _spread(each, decimals, group.n) for each, group in zip(spreads, found, strict=True)
        ]
        columns.append(_numbers(name, cells))
    return columns


def _numbers(title: str, cells: list[str]) -> formats.Column:
    return formats.Column(title, cells, right=True)


def _unreadable(comparison: Comparison) -> list[str]:
    unreadable: Mapping[Path, str] = comparison.collected.unreadable
    return [f"unreadable: {path}: {reason}" for path, reason in unreadable.items()]


def _counts(counts: Mapping[str, int]) -> str:
    """``ok`` for all alike, ``2 diverged, 1 ok`` else; the good ones last."""
    if len(counts) == 1:
        return next(iter(counts))
    good = ("finished", "ok")
    ordered = sorted(counts, key=lambda name: (name in good, -counts[name], name))
    return ", ".join(f"{counts[name]} {name}" for name in ordered) or "-"


def _decimals(spreads: Sequence[Spread]) -> int | None:
    """Decimals that suit a column; None for significant digits instead."""
    sizes = [abs(each.mean) for each in spreads if each.mean is not None]
    largest = max((size for size in sizes if size < float("inf")), default=0.0)
    if 0 < largest < 0.01 or largest >= 1e5:
        return None
    return 3 if largest < 10 else 2 if largest < 100 else 1


def _spread(value: Spread, decimals: int | None, n: int) -> str:
    if value.mean is None:
        return "-"
    form = ".3g" if decimals is None else f".{decimals}f"
    cell = f"{value.mean:{form}}"
    if value.sd is not None:
        cell += f"{_PLUS_MINUS}{value.sd:{form}}"
    return cell if value.n == n else f"{cell} (n={value.n})"


def _monitor(found: Sequence[Group]) -> str:
    monitors = {str(row.record["monitor"].get("metric", "")) for g in found for row in g.rows}
    named = sorted(monitors - {""})
    return f" (by {' or '.join(map(printable, named))})" if named else ""
