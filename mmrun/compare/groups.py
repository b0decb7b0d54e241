"""How good is a setting over its seeds? Mean, sample standard deviation, n; and which setting is best.

Every run that ended counts, a diverged one with the scores that it recorded: leaving it out would
show what a setting gives to those who are lucky. How many diverged or collapsed is said beside it.
Validation is at its best before a run blows up, so that it alone would call such a setting good: one
of which every run diverged stands below the others, and one of which any did is chosen only where
there is no other. A collapsed run has finite weights, and its scores speak for themselves.
Runs that did not end (failed, killed, running, queued, pruned) have no score, and are counted apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrun.compare.collect import ABSENT, ENDED, Row, said, same_value
from mmrun.compare.metrics import Metric, monitored, score
from mmrun.compare.where import number


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values; sd is None for fewer than two."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one setting.

    Args:
        settings: {key: value} that these runs share.
        rows: the runs, best by validation first.
        scores: {full metric name: Spread}.
        pooled: keys beside the seeds in which its runs differ.
        chosen_among: of how many settings this one was chosen on validation; 1 where none was.
    """

    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    scores: Mapping[str, Spread]
    pooled: tuple[str, ...] = ()
    chosen_among: int = 1

    @property
    def n(self) -> int:
        """How many of its runs came to an end."""
        return sum(row.status in ENDED for row in self.rows)

    @property
    def diverged(self) -> tuple[Row, ...]:
        """Those of its runs that diverged, best by validation first."""
        return tuple(row for row in self.rows if _has_diverged(row))

    @property
    def statuses(self) -> Counter[str]:
        """{status: runs}."""
        return Counter(row.status for row in self.rows)

    @property
    def stabilities(self) -> Counter[str]:
        """{ok, spiked, collapsed, diverged: runs that ended}."""
        ended = (row for row in self.rows if row.status in ENDED)
        return Counter(str(row.record["stability"] or row.status) for row in ended)


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and sd (ddof 1) of the values there are; one NaN makes the mean a NaN.

    >>> spread([1.0, 2.0, None])
    Spread(mean=1.5, sd=0.7071067811865476, n=2)
    """
    known = [value for value in values if value is not None]
    n = len(known)
    if n == 0:
        return Spread(None, None, 0)
    if not all(map(math.isfinite, known)):
        return Spread(sum(known), None, n)  # inf stays inf, and inf - inf is a NaN
    mean = math.fsum(known) / n
    if n == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (n - 1)), n)


def groups(
    rows: Sequence[Row], by: Sequence[str], differing: Sequence[str], metric: Metric
) -> list[Group]:
    """Runs that share the values of ``by``, best first by the mean of the validation metric.

    Those of which every run that ended diverged come after the others that have a number.

    Args:
        rows: the runs.
        by: keys of settings.
        differing: every key in which the runs differ but for their seeds.
        metric: what is compared.
    """
    return _ordered((_group(part, by, differing, metric) for part in _split(rows, by)), metric)


def selected(
    rows: Sequence[Row], by: Sequence[str], differing: Sequence[str], metric: Metric
) -> list[Group]:
    """For each value of ``by``, the one setting whose mean on validation is best; then best first.

    One of which a run diverged is chosen only where there is no other with a number to choose by.
    Test scores are those of the setting that validation chose, never the best test scores.
    """
    keys = [*by, *(key for key in differing if key not in by)]
    best: list[Group] = []
    for part in _split(rows, by):
        candidates = groups(part, keys, differing, metric)
        scored = [each for each in candidates if _scored(each, metric)]
        sound = [each for each in scored if not each.diverged]
        first = (sound or scored or [_unchosen(part, by, keys, metric)])[0]
        chosen_among = len(candidates)
        best.append(Group(first.settings, first.rows, first.scores, first.pooled, chosen_among))
    return _ordered(best, metric)


def natural(value: Any) -> tuple[int, str, float, str]:
    """A key that sorts settings as people do: numbers, then laws with numbers, words, none, absent."""
    text = said(value)
    if text in ("-", "none", "null", "false"):
        return (3, "", 0.0, text)
    whole = number(text)
    if whole is not None and not isinstance(value, bool):
        return (0, "", math.inf if whole != whole else whole, text)
    law, _, tail = text.rpartition("_")
    part = number(tail) if law else None
    return (2, text, 0.0, text) if part is None else (1, law, part, text)


def _split(rows: Sequence[Row], by: Sequence[str]) -> list[list[Row]]:
    parts: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(tuple(same_value(row.value(key)) for key in by), []).append(row)
    return list(parts.values())


def _group(
    rows: Sequence[Row], by: Sequence[str], differing: Sequence[str], metric: Metric
) -> Group:
    ranked = sorted(
        rows, key=lambda row: metric.better(score(row, metric.order, higher=metric.higher))
    )
    first = rows[0]
    return Group(
        settings={key: first.value(key) for key in by},
        rows=tuple(ranked),
        scores={
            name: spread(score(row, name, higher=metric.higher) for row in rows)
            for name in metric.shown
        },
        pooled=tuple(
            key
            for key in differing
            if key not in by and len({same_value(row.value(key)) for row in rows}) > 1
        ),
    )


def _unchosen(rows: Sequence[Row], by: Sequence[str], keys: Sequence[str], metric: Metric) -> Group:
    """A row in which validation could not choose: no setting, and no score of one."""
    settings = {key: rows[0].value(key) if key in by else ABSENT for key in keys}
    return Group(settings, tuple(rows), dict.fromkeys(metric.shown, Spread(None, None, 0)))


def _has_diverged(row: Row) -> bool:
    return row.status in ENDED and "diverged" in (row.status, row.record["stability"])


def _scored(group: Group, metric: Metric) -> bool:
    """Has it a number to choose by?"""
    return not metric.better(group.scores[metric.order].mean)[0]


def _ordered(found: Iterable[Group], metric: Metric) -> list[Group]:
    def key(group: Group) -> tuple[Any, ...]:
        tie = spread(monitored(row) for row in group.rows).mean
        broken = tie is None or tie != tie
        return (
            not _scored(group, metric),
            0 < group.n == len(group.diverged),
            metric.better(group.scores[metric.order].mean),
            broken,
            0.0 if broken else tie,
            [natural(value) for value in group.settings.values()],
        )

    return sorted(found, key=key)
