"""W&B end to end, against a server of the tests' own: what arrives, also after failures, and what stays."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_wandb import GONE, HANG, KEY, FakeWandb
from tests.running import SMALL, mmrun, record_of, run_python

pytestmark = pytest.mark.trains

WORDS = tuple(word for word in SMALL if word != "logger=none")
SMOKE = (*WORDS, "trainer=smoke")

# Three points of a sweep in one process; the second raises (or diverges), the third goes on.
POINTS = """
import json, math, sys
from pathlib import Path
from mmrun import compose, point, runs
from mmrun.callbacks.recorder import Recorder

words, sweep = json.loads(sys.argv[1]), Path(sys.argv[2])
collect = Recorder.log_validation
def failing(self, trainer, module):
    if fails:
        raise RuntimeError("disk full")
    collect(self, trainer, module)
Recorder.log_validation = failing
for name, more in json.loads(sys.argv[3]):
    fails = name == "raises"
    frozen = compose.point([*words, *more])
    runs.freeze(frozen, sweep / name, sweep=sweep.name)
    try:
        point.run(sweep / name)
    except RuntimeError as error:
        assert str(error) == "disk full", error
"""


def points(*cases: tuple[str, list[str]], sweep: str = "outputs/s", **environment: str) -> str:
    """Train frozen points one after another in one process; what it printed."""
    done = run_python("-c", POINTS, json.dumps(SMOKE), sweep, json.dumps(cases), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def inspect(path: Path) -> dict[str, Any]:
    """What wandb's own reader finds in a run's folder."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def wandb_id(directory: Path | str) -> str:
    return record_of(Path(directory))["wandb"]["id"]


def names_of_key(*texts: str) -> list[str]:
    """Files below here, and texts, in which the key stands."""
    files = [path for path in Path().rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    found = [str(path) for path in files if KEY.encode() in path.read_bytes()]
    return found + [text for text in texts if KEY in text]


CASES = (
    ("good", ["seed=1"]),
    ("raises", ["seed=2", "clip=0.5"]),
    ("diverged", ["optimizer=sgd", "optimizer.lr=1e30", "seed=3"]),
    ("after", ["seed=4"]),
)
EXIT = {"good": 0, "raises": 1, "diverged": 1, "after": 0}


def test_points_of_one_process_are_runs_of_their_own_online():
    with FakeWandb() as server:
        said = points(*CASES, **server.environment)
        sweep = Path("outputs/s")
        assert {path.name for path in sweep.iterdir()} == {*EXIT, "wandb"}
        ids = {name: wandb_id(sweep / name) for name in EXIT}
        assert set(server.runs) == set(ids.values())
        for name, words in CASES:
            run, record = server.runs[ids[name]], record_of(sweep / name)
            assert run.exit_code == EXIT[name], name
            assert run.project == "mmrun"
            assert (run.name, run.group, run.job_type) == (record["name"], "s", "train")
            assert run.tags == [record["choices"][key] for key in ("clip", "fusion", "dataset")]
            assert run.config["seed"] == int(words[-1][-1] if name != "raises" else 2)
            assert run.config["id"] == record["id"]
            assert record["wandb"] == {
                "id": run.id,
                "url": f"{server.url}/team/mmrun/runs/{run.id}",
                "mode": "online",
            }
        good, clipped = server.runs[ids["good"]], server.runs[ids["raises"]]
        assert clipped.config["clip"]["threshold"] == 0.5
        assert clipped.config["gradient_clip_val"] == 0.5
        assert clipped.config["gradient_clip_algorithm"] == "norm"
        assert good.config["gradient_clip_val"] == "Infinity"  # JSON has no number for it
        record = record_of(sweep / "good")
        assert good.config["optimizer"]["lr"] == record["config"]["optimizer"]["lr"]
        # Steps and scores as in the run's own files.
        loss = record["metrics"]["val/loss"]
        assert good.values("val/loss")[-1] == pytest.approx(loss["last"])
        assert good.summary["val/loss"] == pytest.approx(
            {k: loss[k] for k in ("min", "max", "last")}
        )
        assert good.values("trainer/global_step")[-1] == record["steps"]
        for name, value in (record["test"] | record["test_last"] | record["train_eval"]).items():
            assert good.summary[name] == pytest.approx(value)
        assert any(
            value in ("NaN", "Infinity")
            for row in server.runs[ids["diverged"]].history
            for value in row.values()
        )
    assert names_of_key(said) == []


def test_offline_points_share_a_folder_and_are_uploaded_once():
    said = points(*CASES)
    sweep = Path("outputs/s")
    folders = {path.name.rpartition("-")[2]: path for path in sweep.glob("wandb/offline-run-*")}
    ids = {name: wandb_id(sweep / name) for name in EXIT}
    assert set(folders) == set(ids.values())
    assert not list(sweep.glob("*/wandb"))
    seen = inspect(folders[ids["good"]])
    record = record_of(sweep / "good")
    assert (seen["run_id"], seen["name"], seen["exit_code"]) == (ids["good"], record["name"], 0)
    assert seen["config"]["gradient_clip_val"] == "Infinity"
    assert seen["config"]["trainer"]["max_epochs"] == record["config"]["trainer"]["max_epochs"]
    assert seen["config"]["id"] == record["id"]
    loss = record["metrics"]["val/loss"]
    assert seen["summary"]["val/loss"] == pytest.approx(
        {k: loss[k] for k in ("min", "max", "last")}
    )
    assert {"train/loss", "grad/norm", "clip/fraction", "test/accuracy"} <= set(seen["summary"])
    assert inspect(folders[ids["raises"]])["exit_code"] == 1

    with FakeWandb() as server:
        wet = server.environment
        dry = mmrun("wandb", "sync", "--dry-run", **wet)
        assert dry.stdout.splitlines()[-1] == "4 to upload; 0 already there"
        assert not server.runs
        one = mmrun("wandb", "sync", "outputs/s/good", **wet)
        assert one.returncode == 0
        assert one.stdout.splitlines()[-1] == "1 uploaded, 0 failed; 0 already there"
        assert set(server.runs) == {ids["good"]}
        rest = mmrun("wandb", "sync", "s", **wet)
        assert rest.stdout.splitlines()[-1] == "3 uploaded, 0 failed; 1 already there"
        again = mmrun("wandb", "sync", **wet)
        assert (again.returncode, again.stdout) == (0, "nothing to upload; 4 already there\n")
        for name in EXIT:
            run, record = server.runs[ids[name]], record_of(sweep / name)
            assert (run.exit_code, run.name, run.group) == (EXIT[name], record["name"], "s")
            assert record["wandb"]["url"] == f"{server.url}/team/mmrun/runs/{run.id}"
            assert record["wandb"]["url"] in one.stdout + rest.stdout
        assert server.runs[ids["good"]].summary["val/loss"] == pytest.approx(
            {k: loss[k] for k in ("min", "max", "last")}
        )
    assert not Path("wandb").exists()
    assert names_of_key(said, one.stdout, one.stderr, rest.stdout, rest.stderr) == []
