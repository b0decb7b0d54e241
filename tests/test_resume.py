"""Resume: after any interruption the same weights, optimizer, rows and scores, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from mmrun import cli, point
from mmrun.balance import Balance
from mmrun.callbacks.recorder import Recorder
from mmrun.gradients import GradientPipeline
from mmrun.module import MultimodalModule
from mmrun.runs import reader
from mmrun.signals import Interrupted
from tests.running import SMALL, fit, record_of, same, saved, start, table, the_run
from tests.test_train import check_columns, wait_for_rows

pytestmark = pytest.mark.trains

# 240 training samples: 15 batches an epoch.
BASE = (
    *SMALL,
    "dataset.batch_size=16",
    "clip=0.5",
    "trainer.max_epochs=3",
    "trainer.checkpoint=both",
    "trainer.log_every_n_steps=7",
)
RANDOM = "missing.train_rate=0.3"  # each step draws numbers
CONFIGS: dict[str, list[str]] = {
    "plain": [],
    "mid-epoch": [RANDOM, "trainer.val_check_interval=0.3", "optimizer=momentum"],
    "between micro-batches": [
        RANDOM,
        "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=5",
        "schedule=cosine",
    ],
    "rarely saved": [RANDOM, "trainer.val_check_interval=4", "trainer.checkpoint_every=3"],
    "stopping": [
        "trainer.max_epochs=30",
        "trainer.patience=2",
        "trainer.min_delta=0.3",
        "trainer.tolerance=0.01",
        "schedule=constant",
    ],
    "target": ["trainer.target={accuracy: 0.3}", "trainer.max_epochs=30"],
    "few steps": ["trainer.max_steps=20"],
    "double": [RANDOM, "trainer.precision=64-true", "optimizer=momentum"],
    "features": [
        RANDOM,
        "model.feature_clip=p80",
        "model.gradient_clip=p50",
        "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=5",
    ],
    "thinned": ["clip.record_every=4"],
    "clipped updates": [
        RANDOM,
        "clip.on=update",
        "clip.per=modality",
        "clip.split=norm",  # which has a state
        "trainer.val_check_interval=0.3",
    ],
    "per loss": [RANDOM, "trainer.accumulate_grad_batches=4", "trainer.val_check_interval=5"],
}


class PerLoss(Balance):
    """Manual optimization, its gradients kept apart until they are combined."""

    per_loss = True

    def losses(self, batch: Any, output: Any) -> dict[str, Tensor]:  # noqa: ARG002 - contract
        return {"small": 0.1 * output.fused.square().mean()}


@pytest.fixture(autouse=True)
def balance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "per loss" in request.node.name:
        monkeypatch.setattr("mmrun.build.balance", lambda node: PerLoss())  # noqa: ARG005


def overrides(name: str) -> list[str]:
    own = CONFIGS[name]
    keys = {word.split("=")[0] for word in own}
    return [*(word for word in BASE if word.split("=")[0] not in keys), *own]


RECORDED = (
    *("id", "config", "choices", "status", "stopped_by", "stability", "steps", "epochs"),
    *(
        "metrics",
        "test",
        "test_last",
        "train_eval",
        "monitor",
        "clip",
        "features",
        "steps_to_target",
    ),
)


def facts(directory: Path) -> dict[str, Any]:
    """Everything that an interruption must not change."""
    checkpoint, record = saved(directory), record_of(directory)
    recorder = {k: v for k, v in checkpoint["callbacks"]["Recorder"].items() if k != "elapsed"}
    return {
        "weights": checkpoint["state_dict"],
        "best": saved(directory, "best")["state_dict"],
        "optimizer": checkpoint["optimizer_states"],
        "schedule": checkpoint["lr_schedulers"],
        "loops": checkpoint["loops"],
        "clip": checkpoint["clip"],
        "rng": checkpoint["rng"],
        "accumulated": checkpoint["accumulated"],
        "recorder": recorder,
        "stops": checkpoint["callbacks"]["Stops"],
        "checkpoints": checkpoint["callbacks"]["Checkpoints"],
        "gradients.csv": table(directory / "gradients.csv"),
        "metrics.csv": table(directory / "metrics.csv"),
        **{key: record[key] for key in RECORDED},
    }


def check_same(directory: Path, reference: Path) -> None:
    mine, theirs = facts(directory), facts(reference)
    different = [key for key in theirs if not same(mine[key], theirs[key])]
    assert different == []


_references: dict[str, Path] = {}


def reference(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of this config that nothing interrupted; trained once."""
    if name not in _references:
        folder = tmp_path_factory.mktemp("reference")
        _references[name] = fit(*overrides(name), directory=folder / "run")["directory"]
        assert record_of(_references[name])["status"] == "finished"
    return _references[name]


# Where a signal can strike: the call that it arrives in, before or after the call's own work.
PLACES: dict[str, tuple[type, str, bool]] = {
    "before a step": (MultimodalModule, "training_step", True),
    "before the clip": (GradientPipeline, "apply", True),
    "after a step": (Recorder, "on_train_batch_end", False),
    "in validation": (MultimodalModule, "validation_step", False),
    "before the rows are written": (Recorder, "on_validation_end", True),
    "as the checkpoint is written": (Trainer, "save_checkpoint", True),
    "before it gets its name": (Trainer, "save_checkpoint", False),
}


def strike(patch: pytest.MonkeyPatch, place: str, at: int, act: Callable[[], None]) -> None:
    """Act at the ``at``-th call of a place."""
    owner, name, before = PLACES[place]
    original: Any = getattr(owner, name)
    calls = 0

    def struck(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == at:
            act()
        result = original(self, *args, **kwargs)
        if not before and calls == at:
            act()
        return result

    patch.setattr(owner, name, struck)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupted(run: Callable[[], Any], place: str, at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        strike(patch, place, at, interrupt)
        with pytest.raises(Interrupted):
            run()


CASES = [
    ("plain", "before a step", 18),
    ("plain", "after a step", 30),
    ("mid-epoch", "before a step", 22),
    ("mid-epoch", "in validation", 17),
    ("mid-epoch", "before the clip", 5),
    ("mid-epoch", "as the checkpoint is written", 4),
    ("mid-epoch", "before it gets its name", 5),
    ("mid-epoch", "before the rows are written", 6),
    ("between micro-batches", "before a step", 8),
    ("between micro-batches", "before a step", 29),
    ("between micro-batches", "before the clip", 12),
    ("rarely saved", "after a step", 31),
    ("stopping", "before a step", 40),
    ("clipped updates", "after a step", 31),
    ("clipped updates", "before the clip", 18),
    ("double", "before a step", 18),
    ("features", "before a step", 8),
    ("features", "before the clip", 12),
    ("thinned", "before a step", 18),
    ("per loss", "before a step", 12),
    ("per loss", "before a step", 33),
]


@pytest.mark.parametrize(("name", "place", "at"), CASES)
def test_an_interrupted_run_continues_as_if_nothing_had_been(
    name: str, place: str, at: int, tmp_path_factory: pytest.TempPathFactory
):
    expected = reference(name, tmp_path_factory)
    directory = Path("run").absolute()
    interrupted(lambda: fit(*overrides(name), directory=directory), place, at)
    assert record_of(directory)["stopped_by"] == "interrupt"
    assert not [path.name for path in (directory / "checkpoints").glob(".*")]
    before = saved(directory)["global_step"]
    assert before < record_of(expected)["steps"]
    record = point.run(directory, resume=True)
    assert record["status"] == "finished"
    check_same(directory, expected)
    assert not [path.name for path in (directory / "checkpoints").glob(".*")]


@pytest.mark.parametrize("name", ["plain", "stopping", "target", "few steps"])
def test_a_kill_after_the_last_step_trains_no_more(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    """All is decided by then: why it stopped, and that it did."""
    expected = reference(name, tmp_path_factory)
    directory = Path("run").absolute()
    with monkeypatch.context() as patch:
        patch.setattr("mmrun.train.score_checkpoints", lambda *_: interrupt())
        with pytest.raises(Interrupted):
            fit(*overrides(name), directory=directory)
    point.run(directory, resume=True)
    check_same(directory, expected)


def test_a_diverged_run_that_was_killed_stays_diverged(monkeypatch: pytest.MonkeyPatch):
    words = [*overrides("plain"), "optimizer=sgd", "optimizer.lr=1e9", "schedule=constant"]
    straight = fit(*(w for w in words if w != "clip=0.5"), directory=Path("straight").absolute())
    directory = Path("run").absolute()
    with monkeypatch.context() as patch:
        patch.setattr("mmrun.train.score_checkpoints", lambda *_: interrupt())
        with pytest.raises(Interrupted):
            fit(*(w for w in words if w != "clip=0.5"), directory=directory)
    record = point.run(directory, resume=True)
    assert record["status"] == straight["status"] == "diverged"
    assert record["steps"] == straight["steps"]
    assert record["error"] == straight["error"]
    assert same(table(directory / "gradients.csv"), table(straight["directory"] / "gradients.csv"))


def test_interrupted_twice_and_then_again(tmp_path_factory: pytest.TempPathFactory):
    expected = reference("mid-epoch", tmp_path_factory)
    directory = Path("run").absolute()
    words = overrides("mid-epoch")
    interrupted(lambda: fit(*words, directory=directory), "before a step", 6)
    interrupted(lambda: point.run(directory, resume=True), "in validation", 3)
    interrupted(lambda: point.run(directory, resume=True), "before a step", 16)
    point.run(directory, resume=True)
    check_same(directory, expected)


def test_the_comparison_can_fail(tmp_path_factory: pytest.TempPathFactory):
    """Random numbers that are not restored, or rows that are not cut, are seen."""
    expected = reference("mid-epoch", tmp_path_factory)
    directory = Path("run").absolute()
    interrupted(lambda: fit(*overrides("mid-epoch"), directory=directory), "before a step", 22)
    checkpoint = saved(directory)
    checkpoint["rng"][0]["torch"] = torch.get_rng_state()
    torch.save(checkpoint, directory / "checkpoints" / "last.ckpt")
    point.run(directory, resume=True)
    with pytest.raises(AssertionError, match="weights"):
        check_same(directory, expected)


SLOWLY = """
import sys, time
from mmrun.cli import main
from mmrun.module import MultimodalModule
step = MultimodalModule.training_step
MultimodalModule.training_step = lambda *words: (time.sleep(0.02), step(*words))[1]
sys.exit(main(sys.argv[1:]))
"""


def test_kill_9_in_another_process(tmp_path_factory: pytest.TempPathFactory):
    expected = reference("mid-epoch", tmp_path_factory)
    child = start("train", *overrides("mid-epoch"), python=("-c", SLOWLY))
    try:
        wait_for_rows(Path("outputs"), 7, child)
        assert reader.read(the_run())["status"] == "running"
    finally:
        child.kill()
        child.wait()
    directory = the_run()
    assert record_of(directory)["status"] == "running"
    assert record_of(directory)["pid"] == child.pid
    seconds = record_of(directory)["seconds"]
    assert seconds > 0, "as of the last validation"
    assert reader.read(directory)["status"] == "killed"
    check_columns(directory)
    began = time.monotonic()
    assert cli.main(["resume", str(directory)]) == 0
    check_same(directory, expected)
    assert seconds < record_of(directory)["seconds"] < seconds + time.monotonic() - began


# A longer training


def test_more_epochs_are_those_of_a_longer_run(capsys: pytest.CaptureFixture[str]):
    words = [word for word in BASE if "max_epochs" not in word]
    words += ["schedule=constant", RANDOM, "optimizer=momentum", "optimizer.lr=0.01"]
    short = fit(*words, "trainer.max_epochs=2", directory=Path("short"))
    assert short["steps"] == 30
    assert cli.main(["resume", "short", "trainer.max_epochs=4"]) == 0
    out = capsys.readouterr().out
    assert "max_epochs after 60 steps" in out
    assert "the schedule" not in out  # a constant one has no length
    longer, straight = (
        Path("short"),
        fit(*words, "trainer.max_epochs=4", directory=Path("straight")),
    )
    for name in ("gradients.csv", "metrics.csv"):
        assert table(longer / name) == table(straight["directory"] / name)
    assert same(saved(longer)["state_dict"], saved(straight["directory"])["state_dict"])
    record = record_of(longer)
    assert record["id"] == short["id"] != straight["id"]
    assert record["config"]["trainer"]["max_epochs"] == 2
    assert record["resumed"] == {"trainer.max_epochs": 4}
    assert (record["steps"], record["epochs"], record["status"]) == (60, 4, "finished")
    assert record["test"] == straight["test"]
    # A later resume keeps to the change, and may change it again.
    assert cli.main(["resume", "short"]) == 0
    assert record_of(longer)["steps"] == 60
    assert cli.main(["resume", "short", "trainer.max_epochs=5"]) == 0
    assert (record_of(longer)["steps"], record_of(longer)["epochs"]) == (75, 5)
    assert record_of(longer)["resumed"]["trainer.max_epochs"] == 5


def test_a_schedule_follows_the_new_length(capsys: pytest.CaptureFixture[str]):
    words = [word for word in BASE if "max_epochs" not in word]
    fit(*words, "trainer.max_epochs=2", "schedule=cosine", directory=Path("short"))
    assert cli.main(["resume", "short", "trainer.max_epochs=4"]) == 0
    assert (
        "was made for 30 steps and now spans 60: the learning rate jumps" in capsys.readouterr().out
    )
    rates = [float(row["train/lr"]) for row in table(Path("short/metrics.csv")) if row["train/lr"]]
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    at_step = {int(row["step"]): float(row["train/lr"]) for row in table(Path("short/metrics.csv"))}
    assert at_step[45] == pytest.approx(3e-3 * 0.5 * (1 + 2**-0.5 * -1), rel=1e-6)


# What cannot be resumed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(*BASE, directory=tmp_path_factory.mktemp("finished") / "run")["directory"]


@pytest.fixture
def run(finished: Path) -> Path:
    shutil.copytree(finished, "run")
    return Path("run")


def refused(run: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which resuming is refused; nothing in the directory has changed then."""
    before = {p: (p.read_bytes() if p.is_file() else None) for p in sorted(run.rglob("*"))}
    assert cli.main(["resume", str(run), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert {p: (p.read_bytes() if p.is_file() else None) for p in sorted(run.rglob("*"))} == before
    return err


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.lr=1",
        "clip=0.1",
        "seed=3",
        "trainer.precision=64-true",
        "trainer.max_epoch=9",
        "name=x",
        "outputs=x",
    ],
)
def test_a_change_that_makes_another_run(
    change: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert change in refused(run, change, capsys=capsys)


def test_no_last_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "trainer.checkpoint=both" in refused(run, capsys=capsys)


def test_a_checkpoint_of_another_model(run: Path, capsys: pytest.CaptureFixture[str]):
    other = fit(*SMALL, "fusion=sum", "trainer=smoke", "trainer.checkpoint=both")
    shutil.copy(other["directory"] / "checkpoints" / "last.ckpt", run / "checkpoints")
    capsys.readouterr()
    assert "another model" in refused(run, capsys=capsys)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 torn"])
def test_a_torn_checkpoint(content: bytes, run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "checkpoints" / "last.ckpt").write_bytes(content)
    assert "no checkpoint" in refused(run, capsys=capsys)


def test_a_checkpoint_that_runs_code(run: Path, capsys: pytest.CaptureFixture[str]):
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, ("evil",))

    torch.save({"state_dict": Evil()}, run / "checkpoints" / "last.ckpt")
    assert "no checkpoint" in refused(run, capsys=capsys)
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ("trainer.max_epochs=2", "It is at 3"),
        ("trainer.max_epochs=0", "max_epochs"),
        ("trainer.max_steps=44", "It is at 45"),
    ],
)
def test_a_limit_below_what_is_done(
    change: str, at: str, run: Path, capsys: pytest.CaptureFixture[str]
):
    said = refused(run, change, capsys=capsys)
    assert change in said or change.endswith("=0")
    assert at in said


def test_a_limit_within_the_epoch_of_the_checkpoint(capsys: pytest.CaptureFixture[str]):
    interrupted(lambda: fit(*overrides("mid-epoch"), directory=Path("run")), "before a step", 22)
    assert 15 < saved(Path("run"))["global_step"] < 30, "in the second epoch"
    capsys.readouterr()
    assert "It is at 2" in refused(Path("run"), "trainer.max_epochs=1", capsys=capsys)


def test_a_checkpoint_of_another_run_of_the_same_model(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    other = fit(*BASE, "seed=1", directory=Path("other"))["directory"]
    shutil.copy(other / "checkpoints" / "last.ckpt", run / "checkpoints")
    capsys.readouterr()
    assert "of another run" in refused(run, capsys=capsys)


def test_a_checkpoint_that_lacks_something(run: Path, capsys: pytest.CaptureFixture[str]):
    whole = saved(run)
    told = ["run", "global_step", "epoch", "loops", "optimizer_states", "clip", "rng", "callbacks"]
    junk: list[dict[str, Any]] = [{"state_dict": whole["state_dict"]}, {"state_dict": 3}]
    junk += [{k: v for k, v in whole.items() if k != key} for key in told]
    junk += [{**whole, "clip": {}}, {**whole, "optimizer_states": [{"state": {}}]}]
    for name in whole["callbacks"]:
        if name != "Timer":
            for key in whole["callbacks"][name]:
                state = {k: v for k, v in whole["callbacks"][name].items() if k != key}
                junk.append({**whole, "callbacks": {**whole["callbacks"], name: state}})
    for content in junk:
        torch.save(content, run / "checkpoints" / "last.ckpt")
        assert "checkpoint" in refused(run, capsys=capsys)


def test_a_best_checkpoint_that_is_lost_or_torn(run: Path, capsys: pytest.CaptureFixture[str]):
    best = run / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:1000])
    assert "no checkpoint" in refused(run, capsys=capsys)
    best.unlink()
    assert "lost its best" in refused(run, capsys=capsys)


@pytest.mark.parametrize("name", ["metrics.csv", "gradients.csv"])
def test_rows_that_are_lost(name: str, run: Path, capsys: pytest.CaptureFixture[str]):
    lines = (run / name).read_text().splitlines(keepends=True)
    for kept in ([], lines[:1], lines[:-1], [*lines[:2], *lines[3:]], ["a,b\n", "1,2\n"]):
        (run / name).write_text("".join(kept))
        assert f"{name} has lost rows" in refused(run, capsys=capsys)
    (run / name).unlink()
    assert f"{name} has lost rows" in refused(run, capsys=capsys)


@pytest.mark.parametrize("verb", ["resume", "eval"])
def test_a_config_that_lacks_something(verb: str, run: Path, capsys: pytest.CaptureFixture[str]):
    record = record_of(run)
    whole = record["config"]
    for config in ({}, {**whole, "fusion": None}, {**whole, "trainer": {}}):
        (run / "run.json").write_text(json.dumps(record | {"config": config}))
        assert cli.main([verb, str(run)]) == 2
        assert "the config has no" in capsys.readouterr().err


def test_no_run(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["resume", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("mmrun: ")
    assert not Path("outputs").exists()


def test_a_run_that_is_being_trained(run: Path, capsys: pytest.CaptureFixture[str]):
    from mmrun.runs.heartbeat import process_start
    from mmrun.runs.writer import Run

    mine = os.getpid()
    Run.open(run).update(
        status="running", host=os.uname().nodename, pid=mine, pid_start=process_start(mine)
    )
    assert "being trained now" in refused(run, capsys=capsys)
