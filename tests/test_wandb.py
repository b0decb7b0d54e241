"""W&B end to end, against a server of the tests' own: what arrives, also after failures, and what stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_wandb import KEY, FakeRun, FakeWandb
from tests.running import SMALL, mmrun, record_of, run_python

pytestmark = pytest.mark.trains

# Points of a sweep in one process: one raises, one diverges, one is told to end; the others go on.
POINTS = """
import json, os, signal, sys
from pathlib import Path
from mmrun import compose, point, runs
from mmrun.callbacks.recorder import Recorder
from mmrun.signals import Interrupted

words, sweep = json.loads(sys.argv[1]), Path(sys.argv[2])
log = Recorder.log_validation
def failing(self, trainer, module):
    log(self, trainer, module)
    if trainer.global_step == 8 and name == "raises":
        raise RuntimeError("disk full")
    if trainer.global_step == 8 and name == "killed":
        os.kill(os.getpid(), signal.SIGTERM)
Recorder.log_validation = failing
for name, more in json.loads(sys.argv[3]):
    frozen = compose.point([*words, *more])
    runs.freeze(frozen, sweep / name, sweep=sweep.name)
    try:
        point.run(sweep / name)
        ended = ""
    except (RuntimeError, Interrupted) as error:
        ended = str(error)
    assert ended == {"raises": "disk full", "killed": "SIGTERM"}.get(name, ""), (name, ended)
"""
CASES = {
    "good": ["seed=1"],
    "raises": ["seed=2", "clip=0.5"],
    "diverged": ["seed=3", "optimizer=sgd", "optimizer.lr=1e30"],
    "killed": ["seed=4"],
    "after": ["seed=5", "clip=value_0.1"],
}
EXIT = {"good": 0, "raises": 1, "diverged": 1, "killed": 143, "after": 0}
SWEEP = Path("outputs/s")


def train_points(**environment: str) -> str:
    """Train them, and what was printed."""
    words = [word for word in SMALL if word != "logger=none"]
    arguments = (
        json.dumps([*words, "trainer.max_epochs=4"]),
        str(SWEEP),
        json.dumps([*CASES.items()]),
    )
    done = run_python("-c", POINTS, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def resume_the_killed(**environment: str) -> str:
    done = mmrun("resume", str(SWEEP / "killed"), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def inspect(path: Path) -> dict[str, Any]:
    """What wandb's own reader finds in a run's folder."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def ids() -> dict[str, str]:
    return {name: record_of(SWEEP / name)["wandb"]["id"] for name in CASES}


def extremes(name: str, metric: str = "val/loss") -> Any:
    """min, max and last of a metric over all parts of a run, from its own record."""
    entry = record_of(SWEEP / name)["metrics"][metric]
    return pytest.approx({how: entry[how] for how in ("min", "max", "last")})


def places_of_key(*texts: str) -> list[str]:
    """Files below here, and texts, in which the key stands."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert {"run.json", "train.log", "debug-internal.log"} <= {path.name for path in files}
    found = [str(path) for path in files if KEY.encode() in path.read_bytes()]
    return found + [text for text in texts if KEY in text]


def check_resumed(run: FakeRun) -> None:
    """One run whose steps go on where it was stopped."""
    steps, record = run.values("trainer/global_step"), record_of(SWEEP / "killed")
    assert steps == sorted(steps)
    assert {8, 12, 16} <= set(steps)
    assert run.values("_step") == list(range(len(run.history)))
    assert (run.exit_code, record["status"]) == (0, "finished")
    assert run.summary["val/loss"] == extremes("killed")
    # The extremes of the first part are part of it.
    assert max(run.values("val/loss")) == pytest.approx(record["metrics"]["val/loss"]["max"])


def test_points_of_one_process_are_runs_of_their_own():
    with FakeWandb() as server:
        said = train_points(**server.environment)
        assert {path.name for path in SWEEP.iterdir()} == {*CASES, "wandb"}
        runs = {name: server.runs[id] for name, id in ids().items()}
        assert len(server.runs) == len(runs) == len(CASES)
        for name, words in CASES.items():
            run, record = runs[name], record_of(SWEEP / name)
            assert run.exit_code == EXIT[name], name
            assert (run.project, run.group, run.job_type) == ("mmrun", "s", "train")
            assert run.name == record["name"]
            assert run.tags == [record["choices"][key] for key in ("clip", "fusion", "dataset")]
            assert run.config["seed"] == int(words[0].removeprefix("seed="))
            assert run.config["id"] == record["id"]
            assert record["wandb"] == {
                "id": run.id,
                "url": f"{server.url}/team/mmrun/runs/{run.id}",
                "mode": "online",
            }
        # The config is nested, and has what the module clips with under Lightning's names.
        law = ("gradient_clip_algorithm", "gradient_clip_val")
        assert [runs["raises"].config[key] for key in law] == ["norm", 0.5]
        assert [runs["after"].config[key] for key in law] == ["value", 0.1]
        assert runs["good"].config["gradient_clip_val"] == "Infinity"  # JSON has no number for it
        assert runs["raises"].config["clip"]["threshold"] == 0.5
        assert runs["good"].config["optimizer"]["lr"] == 0.003
        # Steps and scores are those of the run's own files.
        good, record = runs["good"], record_of(SWEEP / "good")
        assert good.values("trainer/global_step")[-1] == record["steps"] == 16
        assert good.values("val/loss")[-1] == extremes("good").expected["last"]
        assert good.summary["val/loss"] == extremes("good")
        for name, value in (record["test"] | record["test_last"] | record["train_eval"]).items():
            assert good.summary[name] == pytest.approx(value)

        # What is not finite arrives as W&B spells it: the threshold of no clipping, and a divergence.
        def spelt(name: str) -> set[tuple[str, Any]]:
            cells = [cell for row in runs[name].history for cell in row.items()]
            return {(key, value) for key, value in cells if isinstance(value, str)}

        assert ("clip/threshold", "Infinity") in spelt("good")
        assert all(key.startswith("clip/threshold") for key, _ in spelt("good"))
        assert ("train/loss", "NaN") in spelt("diverged")

        said += resume_the_killed(**server.environment)
        assert server.begun.count(ids()["killed"]) == 2
        check_resumed(server.runs[ids()["killed"]])
    again = mmrun(
        "wandb", "sync", **server.environment
    )  # it is gone, and nothing is left to say to it
    assert again.stdout == "nothing to upload; 5 already there\n"
    assert places_of_key(said) == []


def test_offline_points_share_a_folder_and_are_uploaded_once():
    said = train_points(WANDB_API_KEY=KEY)  # WANDB_MODE=offline, of the tests, holds
    folders = {path.name.rpartition("-")[2]: path for path in SWEEP.glob("wandb/offline-run-*")}
    assert set(folders) == set(ids().values())
    assert not list(SWEEP.glob("*/wandb"))
    # Read by another program than the one that wrote it.
    seen, record = inspect(folders[ids()["good"]]), record_of(SWEEP / "good")
    assert (seen["run_id"], seen["name"], seen["exit_code"]) == (ids()["good"], record["name"], 0)
    assert seen["config"]["id"] == record["id"]
    assert seen["config"]["gradient_clip_val"] == "Infinity"
    assert seen["config"]["trainer"]["max_epochs"] == 4
    assert seen["summary"]["val/loss"] == extremes("good")
    assert seen["summary"]["test/accuracy"] == pytest.approx(record["test"]["test/accuracy"])
    assert {"train/loss", "grad/norm", "clip/fraction"} <= set(seen["summary"])
    assert inspect(folders[ids()["raises"]])["exit_code"] == 1

    with FakeWandb() as server:
        online = server.environment
        resumed = resume_the_killed(**online)
        assert "W&B: offline, as this run began; upload with: mmrun wandb sync" in resumed
        one = mmrun("wandb", "sync", str(SWEEP / "good"), **online)
        assert one.returncode == 0
        assert one.stdout.splitlines()[-1] == "1 uploaded, 0 failed; 0 already there"
        assert set(server.runs) == {ids()["good"]}
        rest = mmrun("wandb", "sync", "s", **online)
        assert rest.stdout.splitlines()[-1] == "4 uploaded, 0 failed; 1 already there"
        for name, id in ids().items():
            run, record = server.runs[id], record_of(SWEEP / name)
            assert (run.name, run.group) == (record["name"], "s")
            assert run.exit_code == (EXIT | {"killed": 0})[name]
            url = f"{server.url}/team/mmrun/runs/{id}"
            assert record["wandb"] == {"id": id, "url": url, "mode": "online"}
            assert url in one.stdout + rest.stdout
        assert server.runs[ids()["good"]].summary["val/loss"] == extremes("good")
        check_resumed(server.runs[ids()["killed"]])
    printed = [text for done in (one, rest) for text in (done.stdout, done.stderr)]
    assert places_of_key(said, resumed, *printed) == []
