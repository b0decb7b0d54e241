"""How does a sweep stand: what is best in it so far, and how long will the rest take? Pure: reads no disk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast


@dataclass(frozen=True, kw_only=True)
class Best:
    """The point that validation finds best.

    Args:
        directory: its run directory.
        name: its name.
        metric: by which, the monitor of its objective: ``val/loss``.
        value: the best of it over the training.
        higher: whether more of it is better.
    """

    directory: Path
    name: str
    metric: str
    value: float
    higher: bool

    def beats(self, other: Best) -> bool:
        """Whether this one is strictly better than one with the same monitor."""
        return self.value > other.value if self.higher else self.value < other.value

    @property
    def score(self) -> str:
        """``val/loss 0.123``."""
        return f"{self.metric} {digits(self.value)}"


def candidate(directory: Path, record: Mapping[str, Any]) -> Best | None:
    """A point as one that may be the best; None unless it finished and its monitor has a number. Test takes no part.

    One that diverged is never the best, however good it was before.
    """
    monitor = cast("Mapping[str, Any]", record["monitor"])
    value, mode = monitor.get("value"), monitor.get("mode")
    if record["status"] != "finished" or mode not in ("min", "max"):
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return Best(
        directory=directory,
        name=str(record["name"]),
        metric=str(monitor.get("metric")),
        value=float(value),
        higher=mode == "max",
    )


class Leaders:
    """The best of many points, seen one by one: of those with the most frequent monitor; of equals the first.

    Args:
        candidates: some of them.
    """

    def __init__(self, candidates: Iterable[Best | None] = ()) -> None:
        self._leaders: dict[tuple[str, bool], Best] = {}
        self._counts: Counter[tuple[str, bool]] = Counter()
        for each in candidates:
            self.add(each)

    def add(self, found: Best | None) -> None:
        """Another one; None is none."""
        if found is None:
            return
        monitor = found.metric, found.higher
        self._counts[monitor] += 1
        leader = self._leaders.setdefault(monitor, found)
        if found.beats(leader):
            self._leaders[monitor] = found

    @property
    def best(self) -> Best | None:
        """None where there is none."""
        if not self._counts:
            return None
        ((monitor, _),) = self._counts.most_common(1)
        return self._leaders[monitor]


def best(records: Mapping[Path, Mapping[str, Any]]) -> Best | None:
    """The best of {run directory: record}."""
    return Leaders(candidate(run, record) for run, record in records.items()).best


def status(record: Mapping[str, Any]) -> str:
    """finished, or what else; with the stability where it is not ok."""
    word, stability = str(record["status"]), record["stability"]
    return word if stability in (None, "ok", word) else f"{word} ({stability})"


def time_left(
    ended: Sequence[float], running: Sequence[float], waiting: int, slots: int
) -> float | None:
    """Seconds until the last point ends, if each takes as long as those that ended took on average; None before one has.

    Args:
        ended: seconds that each of those took.
        running: seconds that each of those has taken so far.
        waiting: how many have not begun.
        slots: how many run at a time.
    """
    if not ended:
        return None
    mean = sum(ended) / len(ended)
    rest = [max(mean - seconds, 0.0) for seconds in running]
    at_a_time = max(min(slots, waiting + len(rest)), 1)
    shared = (sum(rest) + mean * waiting) / at_a_time
    return max(shared, max(rest, default=0.0))


def elapsed(record: Mapping[str, Any], now: datetime | None = None) -> float | None:
    """Seconds since a point was started, the last time it was; None where it never was."""
    try:
        began = datetime.fromisoformat(record["started"])
        return max(((now or datetime.now(UTC)) - began).total_seconds(), 0.0)
    except (TypeError, ValueError):  # no time, or one without its zone
        return None


def duration(seconds: float) -> str:
    """A time to come, as exactly as one can know it: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def digits(value: float) -> str:
    """A score in few digits.

    >>> digits(0.12345), digits(0.00012345), digits(1234.5678), digits(1234567.0)
    ('0.123', '0.000123', '1234.6', '1.23e+06')
    """
    size = abs(value)
    if 0 < size < 0.01 or size >= 1e5:
        return f"{value:.3g}"
    return f"{value:.3f}" if size < 100 else f"{value:.1f}"
