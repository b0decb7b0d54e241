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


def test_long_names_are_cut_and_keep_their_ends():
    progress = report.Progress(2)
    lines = [
        progress.ended(LONG, record(), 1.0),
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
