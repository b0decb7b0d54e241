"""What does a figure of a comparison show? Plain data: axes in order, cells with mean, sd, n and what went wrong.

Nothing here draws; ``draw`` makes a picture of it, and a page may make another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmrun.compare.collect import ENDED, said
from mmrun.compare.groups import Group, natural
from mmrun.compare.metrics import TEST, TEST_LAST, VAL, score
from mmrun.compare.table import Comparison
from mmrun.compare.where import number
from mmrun.errors import UserError

WRONG = ("diverged", "collapsed", "failed", "killed")
_DECADES = 10.0  # an axis that spans this factor is logarithmic
_WHERE = {VAL: "best on validation", TEST: "best checkpoint", TEST_LAST: "last step"}


@dataclass(frozen=True)
class Axis:
    """One key's values in order: numbers ascending, then laws with numbers, words, none.

    Args:
        key: the setting.
        labels: its values as one types them.
        positions: where they stand: by size (its logarithm where ``log``) when the values are
            numbers but for some, like none, that stand apart at the end; else 0, 1, 2, ...
        log: numbers stand at their logarithm.
        numbers: how many of the values are placed by size; 0 where none is.
    """

    key: str
    labels: tuple[str, ...]
    positions: tuple[float, ...]
    log: bool = False
    numbers: int = 0


@dataclass(frozen=True)
class Cell:
    """One setting: mean, sd and the scores of its n runs.

    Args:
        mean: of the scores; None where no run ended.
        sd: of the scores, None for fewer than two.
        n: how many there are.
        values: the scores.
        wrong: what went wrong, as in ``2 diverged``.
        waiting: what has not ended, as in ``3 running``.
    """

    mean: float | None
    sd: float | None
    n: int
    values: tuple[float, ...] = ()
    wrong: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A heat map over two keys, or points with bars over one (then ``y`` is None).

    Args:
        x: the axis along the bottom.
        y: the axis along the side, first value at the bottom.
        cells: {(index on x, index on y or 0): Cell}; a pair without runs is not there.
        metric: full name of what is drawn.
        higher: more of it is better.
        title: what it shows, in a line.
        notes: what one must know to read it.
    """

    x: Axis
    y: Axis | None
    cells: dict[tuple[int, int], Cell]
    metric: str
    higher: bool
    title: str
    notes: tuple[str, ...]


def figure(comparison: Comparison) -> Figure:
    """The figure of a comparison by one key or two; the first goes along the bottom.

    Raises:
        UserError: it is by another number of keys.
    """
    keys = comparison.by
    if len(keys) not in (1, 2):
        has = ", ".join(keys) or "none"
        raise UserError(
            "a figure is drawn over one key or two",
            given=f"{len(keys)}: {has}",
            remedy="Say which with --by, as in --by optimizer.lr,clip.",
        )
    axes = [axis(key, [group.settings[key] for group in comparison.groups]) for key in keys]
    cells: dict[tuple[int, int], Cell] = {}
    for group in comparison.groups:
        at = [each.labels.index(said(group.settings[each.key])) for each in axes]
        cells[at[0], at[1] if len(at) == 2 else 0] = _cell(group, comparison)
    what = comparison.metric
    notes = [f"mean ± sd over {'runs' if comparison.pooled else 'seeds'}"]
    if len(axes) == 1:
        notes.append("small dots: single runs")
    if comparison.selected:
        notes.append(f"other settings chosen by {what.order}")
    if comparison.pooled:
        notes.append(f"pooled over {', '.join(comparison.pooled)}")
    where = _WHERE.get(what.asked.partition("/")[0])
    return Figure(
        x=axes[0],
        y=axes[1] if len(axes) == 2 else None,
        cells=cells,
        metric=what.asked,
        higher=what.higher,
        title=what.asked + (f" ({where})" if where else ""),
        notes=tuple(notes),
    )


def axis(key: str, values: Sequence[Any]) -> Axis:
    """Order the values of a key and place them.

    >>> axis("clip", ["none", "1", "0.1", "10"]).positions
    (-1.0, 0.0, 1.0, 2.0)
    """
    distinct = {said(value): value for value in values}
    labels = sorted(distinct, key=lambda label: natural(distinct[label]))
    sizes = [size for size in map(number, labels) if size is not None and math.isfinite(size)]
    others = len(labels) - len(sizes)
    placed = [number(label) for label in labels[: len(sizes)]]
    if (
        len(sizes) < 2
        or placed != sizes
        or any(natural(distinct[each])[0] < 3 for each in labels[len(sizes) :])
    ):
        return Axis(key, tuple(labels), tuple(map(float, range(len(labels)))))
    log = sizes[0] > 0 and sizes[-1] / sizes[0] >= _DECADES
    positions = [math.log10(size) for size in sizes] if log else list(sizes)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    positions += [positions[-1] + step * (k + 1) for k in range(others)]
    return Axis(key, tuple(labels), tuple(positions), log, len(sizes))


def _cell(group: Group, comparison: Comparison) -> Cell:
    what = comparison.metric
    value = group.scores[what.asked]
    scores = [score(row, what.asked, higher=what.higher) for row in group.rows]
    # A diverged run says so in its status and its stability: counted once.
    counts = {
        name: sum(
            name in (row.status, row.record["stability"] if row.status in ENDED else "")
            for row in group.rows
        )
        for name in WRONG
    }
    return Cell(
        mean=value.mean,
        sd=value.sd,
        n=value.n,
        values=tuple(each for each in scores if each is not None),
        wrong=tuple(f"{n} {name}" for name, n in counts.items() if n),
        waiting=tuple(
            f"{n} {name}"
            for name, n in sorted(group.statuses.items())
            if name not in (*ENDED, *WRONG)
        ),
    )
