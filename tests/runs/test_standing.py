"""How a sweep stands: the best by validation, in the direction of its monitor, and the time that is left."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mmrun.runs.record import blank
from mmrun.runs.standing import Leaders, best, candidate, duration, elapsed, status, time_left


def record(value: Any, mode: str = "min", metric: str = "val/loss", **keys: Any) -> dict[str, Any]:
    monitor = {"metric": metric, "mode": mode, "value": value}
    tested = {"test/loss": 0.0, "test/accuracy": 1.0}
    return (
        blank()
        | {"name": str(value), "status": "finished", "monitor": monitor}
        | {"test": tested if value == 0.4 else {}}
        | keys
    )


def name_of_best(*records: dict[str, Any]) -> str | None:
    found = best({Path(f"p{k}"): each for k, each in enumerate(records)})
    return found and found.name


@pytest.mark.parametrize(("mode", "expected"), [("min", "0.1"), ("max", "0.4")])
def test_the_best_is_in_the_direction_of_the_monitor(mode: str, expected: str):
    values = [record(value, mode) for value in (0.2, 0.1, 0.4, 0.3)]
    assert name_of_best(*values) == expected
    assert name_of_best(*reversed(values)) == expected


def test_test_scores_take_no_part():
    assert name_of_best(record(0.4), record(0.3)) == "0.3"
    assert name_of_best(record(0.4, test={"test/loss": 0.0}) | {"monitor": {}}) is None


@pytest.mark.parametrize("state", ["diverged", "pruned", "failed", "killed", "running", "queued"])
def test_only_a_finished_point_is_the_best(state: str):
    assert name_of_best(record(0.1, status=state), record(0.2)) == "0.2"
    assert name_of_best(record(0.1, status=state)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.1"])
def test_what_is_no_number_is_not_the_best(value: Any):
    assert name_of_best(record(value), record(0.2)) == "0.2"


def test_points_with_other_monitors_are_not_compared():
    accuracy = [record(value, "max", "val/accuracy") for value in (0.5, 0.9)]
    assert name_of_best(record(0.1), *accuracy) == "0.9"
    assert name_of_best(record(0.2), record(0.1), record(0.3), *accuracy) == "0.1"


def test_of_equals_the_first():
    leaders = Leaders([None, candidate(Path("a"), record(0.1)), candidate(Path("b"), record(0.1))])
    assert leaders.best is not None
    assert leaders.best.directory == Path("a")
    assert leaders.best.score == "val/loss 0.100"


@pytest.mark.parametrize(
    ("ended", "running", "waiting", "slots", "left"),
    [
        ([], [5.0], 3, 2, None),  # nothing is known yet
        ([10.0], [], 4, 2, 20.0),
        ([10.0, 20.0], [], 4, 2, 30.0),
        ([10.0], [4.0, 8.0], 2, 2, 14.0),  # (6 + 2 + 20) / 2
        ([10.0], [4.0], 0, 8, 6.0),
        ([10.0], [1.0, 9.0], 0, 2, 9.0),  # the last to end, not the mean
        ([10.0], [99.0], 0, 1, 0.0),
        ([10.0], [99.0], 1, 1, 10.0),
        ([10.0], [], 0, 4, 0.0),
        ([10.0], [], 1, 64, 10.0),
        ([10.0], [], 2, 0, 20.0),
    ],
)
def test_the_time_left(
    ended: list[float], running: list[float], waiting: int, slots: int, left: float | None
):
    assert time_left(ended, running, waiting, slots) == left


def test_how_long_a_point_runs():
    now = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)
    started = {"started": "2026-01-01T12:00:00.000+00:00"}
    assert elapsed(started, now) == 30.0
    assert elapsed({"started": "2026-01-01T13:00:00+00:00"}, now) == 0.0  # another machine's clock
    for junk in (None, "soon", "2026-01-01T12:00:00", 5):
        assert elapsed({"started": junk}, now) is None


def test_times_and_statuses_are_short():
    assert [duration(each) for each in (0.4, 89, 90, 5399, 12_600)] == [
        *("0 s", "89 s", "2 min", "90 min", "3.5 h")
    ]
    assert status(record(1.0, stability="spiked")) == "finished (spiked)"
    assert status(record(1.0, status="diverged", stability="diverged")) == "diverged"
