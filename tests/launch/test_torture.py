"""Kill the driver of a sweep and its workers at random moments, give the same command again, until it is done.

No point is lost, none is trained to its end twice, and every number and weight is that of a sweep which nobody disturbed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrun.runs import reader
from tests.running import SMALL, environment_with, record_of, same, saved, table

pytestmark = [pytest.mark.trains, pytest.mark.slow]

ROUNDS = 20
KILLS = 5  # of a round, at most
POINTS = 12
WORDS = (
    *("train", "-m", *SMALL, "sweep=s", "trainer.max_epochs=60"),
    *("clip=none,0.5,autoclip", "fusion=concat,attention", "seeds=2", "trainer.checkpoint=both"),
    *("launcher=local", "launcher.workers=2", "trainer.checkpoint_every=2"),
)
ENDED = re.compile(r"^\[ *\d+/\d+\]  (\S+)  (finished|diverged)", re.MULTILINE)


def command(outputs: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "mmrun", *WORDS, f"outputs={outputs}"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment_with({}),
        )


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in map(int, own) for each in (child, *children(child))]


def left_behind(outputs: Path) -> dict[str, Any]:
    """{name: all that a point has learnt and recorded} of the sweep's points."""
    found: dict[str, Any] = {}
    for run in reader.list_runs(outputs / "s"):
        record = record_of(run)
        with np.load(run / "predictions.npz") as file:
            predictions = {key: file[key].tolist() for key in file.files}
        found[record["name"]] = {
            "status": record["status"],
            "steps": record["steps"],
            **{key: record[key] for key in ("test", "test_last", "train_eval", "monitor", "clip")},
            "metrics": table(run / "metrics.csv"),
            "gradients": table(run / "gradients.csv"),
            "predictions": predictions,
            "weights": [saved(run, which)["state_dict"] for which in ("best", "last")],
        }
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    outputs = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert command(outputs, outputs / "log").wait(timeout=600) == 0
    return left_behind(outputs), time.monotonic() - began


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killed_at_random(number: int, tmp_path: Path, undisturbed: tuple[dict[str, Any], float]):
    wanted, seconds = undisturbed
    assert len(wanted) == POINTS
    dice = random.Random(number)
    log, done = tmp_path / "log", dict[str, str]()
    for attempt in range(100):
        process = command(tmp_path, log)
        kills = dice.randint(0, 2) if attempt < KILLS else 0
        for _ in range(kills):
            wait = dice.uniform(0, seconds)
            deadline = time.monotonic() + wait
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            victims = children(process.pid)
            victim = process.pid if not victims or dice.random() < 0.5 else dice.choice(victims)
            if process.poll() is None:
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        code = process.wait(timeout=600)
        for run in reader.list_runs(tmp_path / "s"):
            record = reader.read(run)
            if record["status"] == "finished":
                # Trained again, it would have ended at another time.
                assert done.setdefault(record["name"], record["ended"]) == record["ended"]
        if code == 0:
            break
    else:
        pytest.fail(f"the sweep did not end:\n{log.read_text()}")
    said = log.read_text()
    names = [name for name, _ in ENDED.findall(said)]
    assert len(set(names)) == len(names), said
    assert "Traceback" not in said
    found = left_behind(tmp_path)
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        for key, value in content.items():
            assert same(found[name][key], value), f"{name}: {key}\n{said}"
