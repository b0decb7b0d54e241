"""DDP inside a sweep: a worker's point is trained by two gloo ranks, as it is by itself; all of them end together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mmrun import compose
from mmrun.errors import UserError
from mmrun.launch.executor import make_executor
from mmrun.launch.local import Local
from mmrun.runs import reader
from tests.running import SMALL, fit, mmrun, record_of, same, saved, start, table

pytestmark = pytest.mark.trains

SWEEP = Path("outputs/s")
POINT = (*SMALL, "trainer.checkpoint=both", "trainer.accelerator=cpu", "clip=0.5")
POOL = ("launcher=local", "launcher.workers=1", "sweep=s")


def ranks(mark: str) -> list[int]:
    """Processes that train a point whose folder has this in its path."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "mmrun.point" in words and any(mark in word for word in words):
            found.append(int(folder.name))
    return found


def test_two_ranks_train_a_point_of_a_sweep_as_they_do_alone():
    words = [*POINT, "trainer.max_epochs=2"]
    done = mmrun("train", "-m", *words, *POOL, "launcher.gpus_per_job=2", "seeds=2")
    assert done.returncode == 0, done.stdout + done.stderr
    points = {record_of(run)["seed"]: run for run in reader.list_runs(SWEEP)}
    for run in points.values():
        record = record_of(run)
        assert (record["status"], record["config"]["trainer"]["devices"]) == ("finished", 2)
        assert len(saved(run)["rng"]) == 2, "one state per rank"
    alone = fit(*words, "trainer.devices=2", "seed=1", "data_seed=1", directory=Path("alone"))
    for name in ("metrics.csv", "gradients.csv"):
        assert table(points[1] / name) == table(alone["directory"] / name)
    assert same(saved(points[1])["state_dict"], saved(alone["directory"])["state_dict"])
    assert record_of(points[1])["test"] == alone["test"]


@pytest.mark.parametrize("victim", ["driver by Ctrl-C", "driver by force", "a rank by force"])
def test_ranks_end_with_their_sweep(victim: str, tmp_path: Path):
    words = [*POINT, "trainer.max_epochs=100000", *POOL, "launcher.gpus_per_job=2"]
    process = start("train", "-m", *words, "seeds=1")
    mark = str(tmp_path)

    def training() -> bool:
        runs = reader.list_runs(SWEEP) if SWEEP.is_dir() else []
        return any(
            run / "checkpoints" / "last.ckpt" in (run / "checkpoints").glob("*") for run in runs
        )

    try:
        until(training)
        assert len(ranks(mark)) >= 2
        if victim == "a rank by force":
            os.kill(max(ranks(mark)), signal.SIGKILL)
            assert process.wait(timeout=90) == 1
        else:
            began = time.monotonic()
            process.send_signal(signal.SIGINT if "Ctrl" in victim else signal.SIGKILL)
            assert process.wait(timeout=60) == (130 if "Ctrl" in victim else -signal.SIGKILL)
            assert time.monotonic() - began < 6
        until(lambda: not ranks(mark))
    finally:
        process.kill()
        process.wait()
    (run,) = reader.list_runs(SWEEP)
    record: dict[str, Any] = reader.read(run)
    assert record["status"] == "killed"
    if victim == "a rank by force":
        assert "was ended by SIGKILL" in record["error"]
    assert table(run / "gradients.csv")


def until(true: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def test_one_number_of_processes():
    (point,) = compose.sweep([*POINT, "launcher.gpus_per_job=2"]).points
    assert point.config["trainer"]["devices"] == 2
    assert point.config["launcher"]["devices"] == 2
    (plain,) = compose.sweep(POINT).points
    assert plain.id == point.id, "how many processes train it does not make another point of it"
    with pytest.raises(UserError, match="one number"):
        compose.sweep([*POINT, "launcher.gpus_per_job=2", "trainer.devices=3"])
    (share,) = compose.sweep([*POINT, "launcher=ray", "launcher.gpus_per_job=0.25"]).points
    assert share.config["trainer"]["devices"] == 1


def test_places_are_for_the_point_that_takes_most():
    sweep = compose.sweep([*POINT, "launcher.workers=1", "trainer.devices=2", "threads=1,3"])
    config = sweep.points[0].config["launcher"]
    local = make_executor(config, points=sweep.points)
    assert isinstance(local, Local)
    assert (local._devices, local._threads) == (2, 3)
