"""The validations of a point while it runs, and its value of a metric once it has ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmrun.errors import UserError, nearest
from mmrun.runs.table import read_columns, read_series
from mmrun.spec import SWEEPER

VAL = "val/"


class Curve:
    """The validations of a point so far, read again where the file has changed."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path = path
        self.metric = metric
        self._seen: tuple[int, int] | None = None
        self._values: list[float] = []

    def values(self) -> list[float]:
        """Its values of the metric, one per validation.

        Raises:
            UserError: the point has no such metric.
        """
        try:
            found = self.path.stat()
        except OSError:
            return []
        if (found.st_mtime_ns, found.st_size) != self._seen:
            self._seen = (found.st_mtime_ns, found.st_size)
            columns = read_columns(self.path)
            if columns and self.metric not in columns:
                raise no_metric(self.metric, columns)
            self._values = read_series(self.path, self.metric)[1].tolist()
        return self._values


def no_metric(metric: str, names: Iterable[str]) -> UserError:
    """The error for a metric that validation does not give."""
    known = [name for name in names if name.startswith(VAL)]
    return UserError(
        "the points have no such metric",
        given=f"{SWEEPER}.metric={metric}",
        remedy=nearest(metric, known),
    )


def value_of(record: Mapping[str, Any], metric: str, *, maximize: bool) -> float:
    """The best value of a metric over a run, by its record; NaN where it has none."""
    value = record["metrics"].get(metric, {}).get("max" if maximize else "min")
    return float(value) if isinstance(value, int | float) else math.nan


def without_value(record: Mapping[str, Any], metric: str, *, maximize: bool) -> str:
    """Why a run that has ended gives no value; empty where it does.

    Raises:
        UserError: it has no such metric.
    """
    status = str(record["status"])
    if status != "finished":
        why = record["error"] or record["stopped_by"] or "no word"
        return f"{status}: {str(why).splitlines()[0]}"
    if metric not in record["metrics"]:
        raise no_metric(metric, record["metrics"])
    value = value_of(record, metric, maximize=maximize)
    return "" if math.isfinite(value) else f"not finite: {metric} is {value}"
