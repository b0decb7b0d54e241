"""Which number tells how good a run is? A metric on validation, and its test scores at two checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mmrun.compare.collect import ENDED, Row
from mmrun.errors import UserError, nearest
from mmrun.runs.better import higher

VAL, TEST, TEST_LAST, TRAIN_EVAL = "val", "test", "test_last", "train_eval"
LOSS = "loss"


@dataclass(frozen=True)
class Metric:
    """What is compared: one metric, on validation (which orders) and test (which is reported).

    Args:
        name: without its split, as in accuracy.
        higher: more is better.
        shown: full names, one per column; the first is the validation metric.
        asked: the one that a figure draws.
    """

    name: str
    higher: bool
    shown: tuple[str, ...]
    asked: str

    @property
    def order(self) -> str:
        """What puts settings in order, and chooses among them: never a test score."""
        return self.shown[0]

    def better(self, value: float | None) -> tuple[bool, float]:
        """A key that sorts best first, and what is no number last."""
        if value is None or value != value:
            return (True, 0.0)
        return (False, -value if self.higher else value)


def metric(rows: Sequence[Row], asked: str | None = None) -> Metric:
    """The metric that the user asked for; by default the first beside the loss that test reports.

    Args:
        rows: the runs.
        asked: a full name (test/accuracy, val/loss, ...) or one without its split; its column is
            shown beside validation's best and the test scores of both checkpoints.

    Raises:
        UserError: no run has it.
    """
    names: Counter[str] = Counter(name for row in rows for name in _names(row))
    if asked is None:
        tested = [n for n in names if n.startswith(f"{TEST}/")] or list(names)
        tested = [n for n in tested if n != f"{TEST}/{LOSS}" and n.partition("/")[2] != LOSS]
        common = max(tested, key=lambda n: names[n], default=f"{TEST}/{LOSS}")
        asked = f"{TEST}/{common.partition('/')[2]}"
    elif asked not in names:
        bare = {n.partition("/")[2] for n in names}
        if asked not in bare:
            raise UserError(
                "no run has this metric", given=asked, remedy=nearest(asked, {*names, *bare})
            )
        asked = f"{TEST}/{asked}"
    name = asked.partition("/")[2]
    shown = dict.fromkeys([f"{split}/{name}" for split in (VAL, TEST, TEST_LAST)] + [asked])
    return Metric(name=name, higher=_higher(rows, name), shown=tuple(shown), asked=asked)


def score(row: Row, name: str, *, higher: bool) -> float | None:
    """One run's number under a full name; None for a run that did not come to an end.

    Of validation the best over the run, of test what the best and the last weights gave. A diverged
    run has what it recorded: guesses at its last weights, and often a NaN for the loss.
    """
    if row.status not in ENDED:
        return None
    split = name.partition("/")[0]
    if split in (TEST, TEST_LAST, TRAIN_EVAL):
        return _float(row.record[split].get(name))
    summary = row.record["metrics"].get(name)
    if not isinstance(summary, dict):
        return None
    which = ("max" if higher else "min") if split == VAL else "last"
    return _float(cast("dict[str, Any]", summary).get(which))


def monitored(row: Row) -> float | None:
    """What chose a run's best checkpoint, turned so that less is better: it breaks ties."""
    monitor: Mapping[str, Any] = row.record["monitor"]
    value = _float(monitor.get("value")) if row.status in ENDED else None
    return value if value is None or monitor.get("mode") != "max" else -value


def _names(row: Row) -> list[str]:
    record = row.record
    return [
        str(name)
        for split in (TEST, TEST_LAST, TRAIN_EVAL, "metrics")
        for name in cast("dict[str, Any]", record[split])
    ]


def _higher(rows: Sequence[Row], name: str) -> bool:
    for row in rows:
        monitor: Mapping[str, Any] = row.record["monitor"]
        if monitor.get("metric") == f"{VAL}/{name}" and monitor.get("mode") in ("min", "max"):
            return monitor["mode"] == "max"
    return higher(name)


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
