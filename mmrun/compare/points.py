"""What became of each point of a sweep? A line per point, for sweeps that a screen has room for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from mmrun.compare.formats import Column, plain
from mmrun.runs.standing import digits, status

_NONE = "-"


def text(
    records: Iterable[Mapping[str, Any]], *, width: int | None = None, color: bool = False
) -> str:
    """Name, status, the best of the monitor on validation, and time of these points, in their order.

    Args:
        records: run.json of each.
        width: columns of the terminal; None for lines as long as they need to be.
        color: whether to write terminal colours.
    """
    given = list(records)
    monitors = [_monitor(record) for record in given]
    named = {metric for metric, _ in monitors if metric}
    (title,) = named if len(named) == 1 else ("monitor",)
    scores = [
        value if len(named) == 1 or not metric else f"{metric} {value}"
        for metric, value in monitors
    ]
    columns = [
        Column("point", [str(record["name"]) for record in given], setting=True),
        Column("status", [status(record) for record in given]),
        Column(title, scores, right=True),
        Column("seconds", [_seconds(record) for record in given], right=True),
    ]
    return plain(columns, (), width=width, color=color).rstrip()


def _monitor(record: Mapping[str, Any]) -> tuple[str, str]:
    """(metric, its best value); ("", -) for a point that did not come to an end."""
    monitor = cast("Mapping[str, Any]", record["monitor"])
    metric, value = monitor.get("metric"), monitor.get("value")
    if not metric or not isinstance(value, int | float):
        return "", _NONE
    return str(metric), digits(value)


def _seconds(record: Mapping[str, Any]) -> str:
    seconds = record["seconds"]
    return f"{seconds:.1f}" if isinstance(seconds, int | float) else _NONE
