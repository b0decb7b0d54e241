"""trainer=ddp: two gloo ranks through torchrun; one writes, and both together do what one would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrun import cli
from mmrun.build import build
from tests.running import SMALL, column, fit, record_of, same, saved, table, the_run

pytestmark = pytest.mark.trains

# Full-batch steps of 240 samples: 120 on each rank, so the mean over ranks is the mean over samples.
WORDS = (
    *SMALL,
    "dataset.batch_size=all",
    "clip=0.5",
    "optimizer=sgd",
    "optimizer.lr=0.5",
    "schedule=constant",
    "trainer.checkpoint=both",
    "trainer.log_every_n_steps=3",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Trained by two ranks for two epochs, then resumed by two ranks up to four."""
    folder = tmp_path_factory.mktemp("ddp")
    record = fit(*WORDS, "trainer=ddp", "trainer.max_epochs=2", directory=folder / "run")
    first = {"rows": table(folder / "run" / "gradients.csv"), "record": record}
    assert cli.main(["resume", str(folder / "run"), "trainer.max_epochs=4"]) == 0
    return {"first": first, "directory": folder / "run", "record": record_of(folder / "run")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return fit(*WORDS, "trainer.max_epochs=4", directory=folder / "run")


def test_it_trains_and_resumes(run: dict[str, Any]):
    assert run["first"]["record"]["status"] == "finished"
    assert run["first"]["record"]["steps"] == 2
    record = run["record"]
    assert (record["status"], record["stopped_by"], record["steps"]) == ("finished", "max_epochs", 4)
    assert record["resumed"] == {"trainer.max_epochs": 4}
    assert table(run["directory"] / "gradients.csv")[:2] == run["first"]["rows"]


def test_only_rank_0_writes(run: dict[str, Any]):
    """One row per step in both files, one line per epoch in the log, one of every file."""
    assert column(run["directory"] / "gradients.csv", "step").tolist() == [1, 2, 3, 4]
    steps = column(run["directory"] / "metrics.csv", "step").tolist()
    assert steps == sorted(set(steps))
    log = (run["directory"] / "train.log").read_text()
    assert log.count(" epoch   1 ") == log.count(" epoch   4 ") == 1
    assert sorted(path.name for path in run["directory"].iterdir() if path.name != "code.diff") == [
        ".hydra", "checkpoints", "gradients.csv", "metrics.csv", "predictions.npz", "run.json", "train.log",
    ]  # fmt: skip
    assert sorted(path.name for path in run["directory"].parent.iterdir()) == ["run"]


def test_two_ranks_train_as_one_process_does(run: dict[str, Any], alone: dict[str, Any]):
    mine, theirs = saved(run["directory"])["state_dict"], saved(alone["directory"])["state_dict"]
    start = build(alone["config"]).module.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-6, msg=name)
        assert (value - start[name]).abs().max() > 1e-4
    for name in ("train/loss", "grad/norm", "grad/norm_clipped", "grad/norm/a", "clip/coefficient"):
        assert column(run["directory"] / "gradients.csv", name) == pytest.approx(
            column(alone["directory"] / "gradients.csv", name), rel=1e-4
        ), name
    assert run["record"]["test"] == pytest.approx(alone["test"], rel=1e-3)


def test_validation_over_ranks_is_that_of_one_process(run: dict[str, Any]):
    built = build(run["record"]["config"])
    built.module.load_state_dict(saved(run["directory"])["state_dict"])
    batches = built.loader("val")
    expected = built.module.score(batches, len(batches)).metrics
    for name, value in expected.items():
        assert column(run["directory"] / "metrics.csv", f"val/{name}")[-1] == pytest.approx(
            value, rel=1e-5
        ), name


def test_each_rank_has_random_numbers_of_its_own(run: dict[str, Any]):
    states = saved(run["directory"])["rng"]
    assert len(states) == 2
    assert not same(states[0], states[1])


def test_more_devices_than_samples_is_a_mistake(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", *SMALL, "trainer=ddp", "dataset.batch_size=1"]) == 2
    assert "fewer samples than there are devices" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_ranks_that_never_begin_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    assert cli.main(["train", *SMALL, "trainer=ddp"]) == 1
    assert "before they trained" in capsys.readouterr().err
    record = record_of(the_run())
    assert (record["status"], record["stopped_by"]) == ("failed", "error")
    assert "exit code 1" in record["error"]
