"""trainer=ddp: two gloo ranks through torchrun; one writes, and both together do what one would."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrun import cli, compose, point, ranks
from mmrun.build import build
from mmrun.runs.heartbeat import process_start
from mmrun.runs.writer import Run, freeze
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


def test_two_ranks_do_what_one_process_does(capfd: pytest.CaptureFixture[str]):
    """Two epochs by two ranks, resumed up to four, against four by one process. One test: starting ranks takes long."""
    directory = Path("ranks").absolute()
    first = fit(*WORDS, "trainer=ddp", "trainer.max_epochs=2", directory=directory)
    assert (first["status"], first["steps"]) == ("finished", 2)
    rows = table(directory / "gradients.csv")
    assert cli.main(["resume", str(directory), "trainer.max_epochs=4"]) == 0
    record = record_of(directory)
    assert (record["status"], record["stopped_by"]) == ("finished", "max_epochs")
    assert (record["steps"], record["resumed"]) == (4, {"trainer.max_epochs": 4})
    assert table(directory / "gradients.csv")[:2] == rows
    check_that_one_rank_wrote(directory)
    check_against(fit(*WORDS, "trainer.max_epochs=4", directory=Path("alone")), directory)
    check_validation(directory)
    states = saved(directory)["rng"]
    assert len(states) == 2
    assert capfd.readouterr().err == "", "nothing that torchrun, gloo or Lightning has to say"
    assert not same(states[0], states[1]), "each rank has random numbers of its own"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["clip=value_0.003"], ["clip=0.1", "clip.per=modality", "clip.split=norm"]],
    ids=["value", "per modality"],
)
def test_two_ranks_clip_as_one_process_does(words: list[str]):
    directory = Path("ranks").absolute()
    words = [*(w for w in WORDS if not w.startswith("clip")), *words, "trainer.max_epochs=3"]
    fit(*words, "trainer=ddp", directory=directory)
    alone = fit(*words, directory=Path("alone"))
    check_against(alone, directory)
    assert (column(directory / "gradients.csv", "clip/coefficient") < 0.9).any()
    states = [saved(each)["clip"]["laws"][""]["state"] for each in (directory, alone["directory"])]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-8)


def test_half_a_gradient_of_every_rank_is_kept():
    """A run against itself, gone on with from a checkpoint that lies between two micro-batches."""
    words = [word for word in WORDS if "batch_size" not in word and "lr" not in word]
    words += ["dataset.batch_size=40", "trainer.accumulate_grad_batches=2", "trainer=ddp"]
    words += ["trainer.val_check_interval=3", "trainer.max_epochs=1", "missing.train_rate=0.3"]
    words += ["optimizer.lr=30", "clip.threshold=9"]  # it gets worse, so that the first one is best
    directory = fit(*words, directory=Path("run"))["directory"]
    best = saved(directory, "best")
    assert [best["global_step"], saved(directory)["global_step"]] == [1, 3]
    halves = best["accumulated"]
    assert len(halves) == 2
    assert not same(halves[0]["gradients"], halves[1]["gradients"])
    again = Path(shutil.copytree(directory, "again"))
    shutil.copy(again / "checkpoints" / "best.ckpt", again / "checkpoints" / "last.ckpt")
    assert cli.main(["resume", "again"]) == 0
    for name in ("gradients.csv", "metrics.csv"):
        assert table(again / name) == table(directory / name)
    assert same(saved(again)["state_dict"], saved(directory)["state_dict"])


def test_feature_clipping_is_one_process_s():
    """Bounds from both ranks' samples; gradients in units of the whole batch's loss; shares over all of it."""
    words = (*WORDS, "model.feature_clip=p80", "model.gradient_clip=p60", "trainer.max_epochs=3")
    both = fit(*words, "trainer=ddp", directory=Path("ranks").absolute())
    alone = fit(*words, directory=Path("alone"))
    names = ["feature/clamped", "feature/largest"]
    for what in ("clipped", "largest"):
        names += [f"feature/gradient_{what}/{name}" for name in "abc"]
    for name in names:
        got, want = (column(r["directory"] / "metrics.csv", name) for r in (both, alone))
        assert got == pytest.approx(want, rel=1e-4, abs=5e-3), (
            name
        )  # a sample in 240 may lie at the bound
        assert want.any()
    for clip in ("feature_clip", "gradient_clip"):
        got, want = (bounds(record["features"][clip]) for record in (both, alone))
        assert got == pytest.approx(want, rel=1e-4)
    mine, theirs = (saved(record["directory"])["state_dict"] for record in (both, alone))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5, msg=name)


def bounds(block: dict[str, Any]) -> list[float]:
    return [each["bound"] for each in block.get("scopes", {"": block}).values()]


def check_that_one_rank_wrote(directory: Path) -> None:
    """One row per step in both files, one line per epoch in the log, one of every file."""
    assert column(directory / "gradients.csv", "step").tolist() == [1, 2, 3, 4]
    steps = column(directory / "metrics.csv", "step").tolist()
    assert steps == sorted(set(steps))
    log = (directory / "train.log").read_text()
    assert "Tip:" not in log
    assert "Warning" not in log
    assert log.count(" epoch   1 ") == log.count(" epoch   4 ") == 1
    assert sorted(path.name for path in directory.iterdir() if path.name != "code.diff") == [
        ".hydra", "checkpoints", "gradients.csv", "metrics.csv", "predictions.npz", "run.json", "train.log",
    ]  # fmt: skip
    assert sorted(path.name for path in directory.parent.iterdir()) == ["ranks"]


def check_against(alone: dict[str, Any], directory: Path) -> None:
    """The same weights and numbers as one process, up to the order in which floats are added."""
    mine, theirs = saved(directory)["state_dict"], saved(alone["directory"])["state_dict"]
    start = build(alone["config"]).module.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-6, msg=name)
        assert (value - start[name]).abs().max() > 1e-4
    for name in ("train/loss", "grad/norm", "grad/norm_clipped", "grad/norm/a", "clip/coefficient"):
        assert column(directory / "gradients.csv", name) == pytest.approx(
            column(alone["directory"] / "gradients.csv", name), rel=1e-4
        ), name
    assert record_of(directory)["test"] == pytest.approx(alone["test"], rel=1e-3)


def check_validation(directory: Path) -> None:
    """Metrics over two ranks are those of one process that scores the same weights."""
    built = build(record_of(directory)["config"])
    built.module.load_state_dict(saved(directory)["state_dict"])
    batches = built.loader("val")
    for name, value in built.module.score(batches, len(batches)).metrics.items():
        found = column(directory / "metrics.csv", f"val/{name}")[-1]
        assert found == pytest.approx(value, rel=1e-5), name


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


def test_what_ranks_refuse_is_what_the_run_says():
    """A calibration is the ranks' own: nobody knows before they run what it comes to."""
    words = (*SMALL, "trainer=ddp", "model.feature_clip=p20", "missing.train_rate=0.8")
    assert cli.main(["train", *words]) == 1
    record = record_of(the_run())
    assert (record["status"], record["stopped_by"]) == ("failed", "error")
    assert record["error"].startswith("model.feature_clip cannot be calibrated: ")


# How ranks end


@pytest.mark.parametrize(("rank", "code"), [("0", 1), ("1", 0)])
def test_a_rank_that_keeps_no_record_ends_well(
    rank: str, code: int, monkeypatch: pytest.MonkeyPatch
):
    """What it read when it began says nothing; a code of its own would have torchrun end the first one at its scoring."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert point._code({"status": "queued", "stopped_by": None}) == code


def frozen() -> Run:
    return freeze(compose.point([*SMALL, "trainer=ddp"]), Path("run"))


@pytest.mark.parametrize("how", ["killed", "ended by torchrun"])
def test_a_rank_that_is_lost_fails_the_run(how: str):
    run = frozen()
    run.start()
    if how == "ended by torchrun":
        run.finish("killed", stopped_by="terminate")
    with pytest.raises(RuntimeError, match="out of memory"):
        ranks._check_ending(run.directory, None, 1, "out of memory")
    record = record_of(run.directory)
    assert (record["status"], record["stopped_by"]) == ("failed", "error")
    assert record["error"] == "out of memory"


def test_a_rank_that_was_killed_leaves_a_run_that_can_go_on():
    run = frozen()
    run.start()
    with pytest.raises(RuntimeError, match="SIGKILL"):
        ranks._check_ending(run.directory, None, 1, "rank 1 was ended by SIGKILL")
    record = record_of(run.directory)
    assert (record["status"], record["stopped_by"]) == ("killed", "signal")
    assert record["ended"]


@pytest.mark.parametrize("status", ["finished", "diverged", "failed"])
def test_what_the_first_rank_wrote_stands(status: str):
    run = frozen()
    run.start()
    run.finish(status, stopped_by="error", error="boom")
    ranks._check_ending(run.directory, None, 1, "")
    assert record_of(run.directory) == run.record


def test_the_rank_that_died_says_why_the_run_failed():
    run = frozen()
    run.start()
    run.finish("failed", stopped_by="error", error="RuntimeError: Connection closed by peer [::1]")
    ranks._check_ending(run.directory, None, 1, "MemoryError: too small")
    assert record_of(run.directory)["error"] == "MemoryError: too small"


def test_what_every_rank_says_is_passed_on_once(capsys: pytest.CaptureFixture[str]):
    said = "mmrun: RuntimeError: Connection closed by peer\nmmrun: terminated\nmmrun: ValueError: boom\na warning\nmmrun: ValueError: boom\na warning\n"
    with subprocess.Popen(["sh", "-c", f"printf '{said}' >&2"], stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        relay = ranks._Relay()
        relay.follow(child.stderr)
        relay.join()
    assert capsys.readouterr().err == "mmrun: ValueError: boom\na warning\na warning\n"
    assert relay.reason == "ValueError: boom"


def executable(text: str) -> str:
    path = Path("program").absolute()
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_interrupted_before_the_ranks_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.executable", executable("kill -INT $PPID; exec sleep 60"))
    assert cli.main(["train", *SMALL, "trainer=ddp"]) == 130
    record = record_of(the_run())
    assert (record["status"], record["stopped_by"]) == ("killed", "interrupt")
    assert capsys.readouterr().err == f"mmrun: interrupted\nthe run: {the_run()}\n"


def test_an_interrupted_run_with_a_checkpoint_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fit(*SMALL, "trainer=smoke", "trainer.checkpoint=both", directory=Path("run"))
    monkeypatch.setattr("sys.executable", executable("kill -TERM $PPID; exec sleep 60"))
    capsys.readouterr()
    words = ["resume", "run", "trainer.max_steps=4", "trainer.devices=2"]
    assert cli.main(words) == 143
    assert "continue it: mmrun resume run\n" in capsys.readouterr().err


ENDS = """
import sys, time
from mmrun.signals import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)
def test_a_process_ends_with_the_one_that_started_it():
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ENDS!r}])"
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
        parent.wait()
        for _ in range(500):
            if process_start(int(child)) is None:
                return
            time.sleep(0.02)
    os.kill(int(child), signal.SIGKILL)
    raise AssertionError("it lives on")
