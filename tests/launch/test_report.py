"""What a sweep says fits a terminal, and says why points are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmrun.launch import report
from mmrun.launch.plan import Planned
from mmrun.runs.record import blank
from mmrun.spec import Point

LONG = "fusion.note=" + "a" * 10_000 + ",seed=0"


def planned(*names: str) -> list[Planned]:
    return [
        Planned(
            point=Point(config={}, choices={}, overrides=(), name=name),
            directory=Path("outputs/s") / name[:50],
            action="train",
        )
        for name in names
    ]


def record(**keys: Any) -> dict[str, Any]:
    return blank() | {"name": LONG, "status": "finished"} | keys


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"stopped_by": "interrupt"}, "interrupted (SIGINT)"),
        ({"stopped_by": "terminate"}, "terminated (SIGTERM)"),
        ({"stopped_by": "signal", "error": "its process died\nand more"}, "its process died"),
        ({"status": "queued"}, "queued"),
    ],
)
def test_why_a_point_has_no_result(keys: dict[str, Any], why: str):
    assert report.reason(record(**keys)) == why


def test_long_names_are_cut_and_keep_their_ends():
    progress = report.Progress(2)
    lines = [
        progress.ended(planned(LONG)[0], record(), 1.0),
        *report.closing(
            {
                Path("outputs/s/d"): record(status="diverged", error="at step 3"),
                Path("outputs/s") / LONG[-200:]: record(status="failed", error="ValueError"),
            },
            {},
        ),
        *report.opening(Path("outputs/s"), planned("seed=1"), "false", [LONG] * 3),
    ]
    assert max(map(len, lines)) < 500
    assert sum("aaa..." in line and "seed=0" in line for line in lines) == 4


@pytest.mark.parametrize(
    ("kept", "repeated", "idle", "why"),
    [
        (
            ["trainer=default"],
            ["trainer=ddp"],
            ["trainer"],
            " (trainer: no difference to what is learnt)",
        ),
        (
            ["outputs=a,clip=none", "outputs=a,clip=0.5"],
            ["outputs=b,clip=none", "outputs=b,clip=0.5"],
            ["outputs"],
            " (outputs: no difference to what is learnt)",
        ),
        (
            ["trainer.devices=1,dataset.use=[a,b],logger=none"],
            ["trainer.devices=2,dataset.use=[a,b],logger=auto"],
            ["logger", "trainer.devices"],
            " (logger, trainer.devices: no difference to what is learnt)",
        ),
        (["clip=0.5"], ["clip=norm_0.5"], [], ""),  # the name says it: another spelling
        (["outputs=a,clip=0.5"], ["outputs=a,clip=norm_0.5"], [], ""),
    ],
)
def test_why_points_are_one(kept: list[str], repeated: list[str], idle: list[str], why: str):
    *_, line = report.opening(Path("outputs/s"), planned(*kept), "false", repeated, idle)
    assert line.strip() == f"taken once, as equal to others: {'; '.join(repeated)}{why}"


def ended(k: int = 0, **keys: Any) -> str:
    progress = report.Progress(12)
    progress.parallel = 2
    for _ in range(k):
        progress.ended(planned("before")[0], record(), 4.0)
    return progress.ended(planned("seed=1")[0], record(**keys), 6.0, [3.0, None])


def test_the_line_of_a_point():
    metrics = {"val/loss": {"last": 0.5}, "val/accuracy": {"last": 0.75}, "val/f1": {"last": 0.1}}
    assert (
        ended(metrics=metrics)
        == "[ 1/12]  seed=1  finished  val/accuracy 0.750  6.0 s  (32 s left)"
    )
    assert ended(11) == "[12/12]  seed=1  finished  6.0 s"
    line = ended(status="failed", error="ValueError: no\nmore of it", metrics=metrics)
    assert line == "[ 1/12]  seed=1  failed: ValueError: no  6.0 s  (32 s left)"
    assert "  killed  6.0 s" in ended(status="killed")
    assert "  killed: timeout  6.0 s" in ended(status="killed", stopped_by="timeout")
    assert len(ended(status="failed", error="e" * 10_000)) < 200


def test_what_is_counted():
    progress = report.Progress(9)
    assert progress.left() is None
    for state in ("finished", "diverged", "pruned", "failed", "killed", "cancelled", "unreadable"):
        progress.ended(planned("a")[0], record(status=state), 1.0)
    assert (progress.done, progress.failed) == (3, 4)
    assert progress.left() == 2.0


def monitored(value: float, mode: str = "min", **keys: Any) -> dict[str, Any]:
    monitor = {"metric": "val/loss", "mode": mode, "value": value}
    return record(name=f"clip={value}", monitor=monitor, **keys)


@pytest.mark.parametrize(("mode", "name"), [("min", "0.125"), ("max", "0.5")])
def test_the_end_names_the_best_point(mode: str, name: str):
    records = {
        Path(f"outputs/my sweep/{value}"): monitored(value, mode, test={"test/loss": -value})
        for value in (0.25, 0.125, 0.5)
    }
    records[Path("outputs/my sweep/d")] = monitored(-9.0, mode, status="diverged")
    assert report.winner(records) == [
        f"best     clip={name}  val/loss {float(name):.3f}",
        f"next     mmrun show 'outputs/my sweep/{name}'    # the best point, by val/loss",
    ]
    assert report.winner({Path("a"): record(status="failed")}) == []


def test_a_line_says_that_a_point_is_tried_again_or_waited_for():
    (point,) = planned("clip=0.5")
    failed = record(status="failed", error="RuntimeError: CUDA out of memory\nTried to")
    said = "clip=0.5  failed: RuntimeError: CUDA out of memory  try 2 of 3 follows"
    assert report.retried(point, failed, 2, 3) == said
    assert report.awaited(point) == "clip=0.5  another process trains it now: waiting for its end"
