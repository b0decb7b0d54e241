"""The table of a sweep's points: a line each, in every state they may be in."""

from __future__ import annotations

from typing import Any

import pytest

from mmrun.compare import points
from mmrun.runs.record import blank


def record(name: str, value: float | None = None, **keys: Any) -> dict[str, Any]:
    monitor = {} if value is None else {"metric": "val/loss", "mode": "min", "value": value}
    return blank() | {"name": name, "status": "finished", "monitor": monitor} | keys


SWEEP = [
    record("clip=none,seed=0", 0.25, seconds=61.23, stability="spiked"),
    record("clip=0.5,seed=0", 12345.678, seconds=3.0, status="diverged", stability="diverged"),
    record("clip=[red],seed=0", status="failed"),
]


def test_a_line_per_point():
    assert points.text(SWEEP).splitlines() == [
        "point              status             val/loss  seconds",
        "clip=none,seed=0   finished (spiked)     0.250     61.2",
        "clip=0.5,seed=0    diverged            12345.7      3.0",
        "clip=[red],seed=0  failed                    -        -",
    ]


def test_points_with_other_monitors_say_which():
    other = {"metric": "val/accuracy", "mode": "max", "value": 0.9}
    title, *rows = points.text([*SWEEP, record("a", monitor=other)]).splitlines()
    assert title.split() == ["point", "status", "monitor", "seconds"]
    assert [" ".join(row.split()[-3:-1]) for row in rows[::3]] == [
        "val/loss 0.250",
        "val/accuracy 0.900",
    ]


@pytest.mark.parametrize("width", [50, 60, 80, 200])
def test_it_fits_a_terminal(width: int):
    long = record("optimizer.lr=0.001,dataset.use=[image,text]," * 3 + "seed=1", 0.25)
    text = points.text([*SWEEP, long], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "\x1b[31mfailed" in points.text(SWEEP, width=width, color=True)
