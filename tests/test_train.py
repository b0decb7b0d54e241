"""Training through the real path: against a loop written by hand, bit for bit again, and every ending."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmrun import cli, compose, signals
from mmrun.build import build
from mmrun.module import MultimodalModule
from mmrun.runs import reader
from mmrun.runs.record import KEYS
from mmrun.runs.writer import freeze
from mmrun.signals import Interrupted
from mmrun.train import train
from tests.running import (
    SMALL,
    column,
    fit,
    record_of,
    run_python,
    same,
    saved,
    start,
    table,
    the_run,
)

pytestmark = pytest.mark.trains

# Against torch

STEPS = 50
LAWS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "norm_0.5": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.5),
    "value_0.1": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.1),
    "none": lambda parameters: None,  # noqa: ARG005 (a law of torch takes them)
}


def by_hand(
    overrides: list[str], law: Callable[[list[nn.Parameter]], Any], momentum: float, lr: float
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The same training as plain PyTorch in float64; final weights, and each step's numbers."""
    built = build(compose.point(overrides).config)
    module = built.module.double()
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    split, loader = built.dataset.split("train"), built.loader("train", shuffle=True)
    rows: list[dict[str, float]] = []
    for epoch in range(STEPS):
        loader.set_epoch(epoch)
        for chosen in loader.order().split(64):
            if len(rows) == STEPS:
                return module.state_dict(), rows
            batch = split.batch(chosen)
            batch.inputs = {name: x.double() for name, x in batch.inputs.items()}
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(batch).prediction, batch.target)
            loss.backward()
            row = {"train/loss": loss.item(), "grad/norm": norm_of(parameters)}
            for scope, prefix in (("a", "model.encoders.a."), ("objective", "objective.")):
                own = [p for n, p in module.named_parameters() if n.startswith(prefix)]
                row[f"grad/norm/{scope}"] = norm_of(own)
            law(parameters)
            row["grad/norm_clipped"] = norm_of(parameters)
            row["clip/coefficient"] = row["grad/norm_clipped"] / row["grad/norm"]
            rows.append(row)
            optimizer.step()
    raise AssertionError


def norm_of(parameters: list[nn.Parameter]) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("clip", list(LAWS))
def test_fifty_steps_are_torch_s_own(clip: str, optimizer: str):
    lr = 0.02 if clip == "none" else 0.5
    overrides = [
        *SMALL,
        f"clip={clip}",
        *(["clip.eps=1e-6"] if clip.startswith("norm") else []),
        f"optimizer={optimizer}",
        f"optimizer.lr={lr}",
        "schedule=constant",
        "fusion=attention",
        "trainer.precision=64-true",
        "trainer.max_epochs=100",
        f"trainer.max_steps={STEPS}",
        "trainer.checkpoint=both",
        "trainer.log_every_n_steps=7",
    ]
    record = fit(*overrides)
    assert (record["steps"], record["stopped_by"]) == (STEPS, "max_steps")
    weights, rows = by_hand(overrides, LAWS[clip], {"sgd": 0.0, "momentum": 0.9}[optimizer], lr)
    checkpoint = saved(record["directory"])
    assert checkpoint["global_step"] == STEPS
    assert checkpoint["state_dict"].keys() == weights.keys()
    start = build(record["config"]).module.double().state_dict()
    for name, value in weights.items():
        mine = checkpoint["state_dict"][name]
        assert mine.dtype == torch.float64
        assert not torch.equal(value, start[name]), f"{name} did not move"
        assert (mine - value).abs().max() <= 1e-12, name
    path = record["directory"] / "gradients.csv"
    assert column(path, "step").tolist() == list(range(1, STEPS + 1))
    for name in rows[0]:
        assert column(path, name) == pytest.approx([row[name] for row in rows], rel=1e-8), name
    if clip == "none":
        assert set(column(path, "clip/coefficient")) == {1.0}
    else:
        clipped = column(path, "clip/coefficient") < 1
        assert clipped.mean() > 0.2, "the law must have something to do here"
        assert set(column(path, "clip/threshold")) == {float(clip.rpartition("_")[2])}


# The same numbers again


def fingerprint(directory: Path) -> dict[str, Any]:
    checkpoint = saved(directory)
    record = record_of(directory)
    with np.load(directory / "predictions.npz") as arrays:
        predictions = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {
        "weights": checkpoint["state_dict"],
        "optimizer": checkpoint["optimizer_states"],
        "rng": checkpoint["rng"],
        "gradients": table(directory / "gradients.csv"),
        "metrics": table(directory / "metrics.csv"),
        "predictions": predictions,
        **{k: record[k] for k in ("test", "test_last", "train_eval", "monitor", "clip", "metrics")},
    }


def test_the_same_point_gives_the_same_bits_here_again_and_in_a_fresh_process():
    words = [*SMALL, "clip=0.5", "missing.train_rate=0.3", "trainer.max_epochs=3"]
    words += ["trainer.checkpoint=both", "trainer.log_every_n_steps=2"]
    first, again = (fingerprint(fit(*words)["directory"]) for _ in range(2))
    assert same(first, again)
    # ``python -m mmrun.point DIR`` is what pool workers, cluster tasks and ranks call.
    frozen = freeze(compose.point(words), Path("fresh")).directory
    assert record_of(frozen)["status"] == "queued"
    done = run_python("-m", "mmrun.point", str(frozen))
    assert done.returncode == 0, done.stderr
    assert record_of(frozen)["status"] == "finished"
    assert same(first, fingerprint(frozen))
    for other in ("seed=1 data_seed=0", "data_seed=1"):
        differs = fingerprint(fit(*words, *other.split())["directory"])
        assert not same(first["weights"], differs["weights"]), other
        assert first["gradients"] != differs["gradients"], other
        # Dropout and the like follow the seed alone.
        assert same(first["rng"], differs["rng"]) == other.startswith("data_seed"), other


# Every ending

METRICS = {"loss", "accuracy", "f1_macro"}
SCOPES = ("a", "b", "c", "objective")


def check_format(directory: Path) -> dict[str, Any]:
    """What every run directory keeps to, whatever its end; its record."""
    record = record_of(directory)
    assert set(record) == set(KEYS)
    for key, types in KEYS.items():
        assert isinstance(record[key], types), key
    assert record["format"] == 1
    assert directory.name.endswith(f"_{record['id'][:8]}")
    point = reader.point(directory)
    assert point.id == record["id"]
    assert record["choices"] == dict(sorted(record["choices"].items()))
    assert (directory / ".hydra" / "config.yaml").is_file()
    assert (directory / ".hydra" / "overrides.yaml").is_file()
    leftovers = [p.name for p in directory.rglob("*") if p.name.startswith(".") and p.is_file()]
    assert leftovers == []
    assert (directory / "train.log").read_text().count("run      ") >= 1
    assert record["pid"] is not None
    assert record["started"] is not None
    check_columns(directory)
    return record


def check_columns(directory: Path) -> None:
    """The columns, fixed from the start whatever was logged."""
    scoped = ["grad/norm", "grad/norm_clipped", "grad/cosine"]
    scoped += ["clip/coefficient", "clip/elements", "clip/threshold"]
    gradient = ["train/loss", "grad/nonfinite", *(f"clip/payer/{s}" for s in SCOPES)]
    gradient += [name for base in scoped for name in (base, *(f"{base}/{s}" for s in SCOPES))]
    fractions = ["clip/fraction", *(f"clip/fraction/{s}" for s in SCOPES)]
    shown = [*gradient, *fractions, "train/lr", *(f"val/{name}" for name in METRICS)]
    with (directory / "metrics.csv").open() as file:
        assert file.readline().strip().split(",") == ["step", "epoch", "time", *sorted(shown)]
    with (directory / "gradients.csv").open() as file:
        header = file.readline().strip().split(",")
    assert header[:2] == ["step", "train/loss"]
    assert set(header) == {"step", *gradient}
    assert len(header) == len(set(header))
    for name in ("metrics.csv", "gradients.csv"):
        rows = table(directory / name)
        steps = [int(row["step"]) for row in rows]
        assert steps == sorted(set(steps))
        assert all(None not in row and None not in row.values() for row in rows)


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").glob("*"))


@pytest.mark.parametrize(
    ("keep", "left"), [("best", ["best.ckpt"]), ("both", ["best.ckpt", "last.ckpt"]), ("none", [])]
)
def test_finished(keep: str, left: list[str], capsys: pytest.CaptureFixture[str]):
    words = [*SMALL, "clip=0.3", "trainer.max_epochs=3", f"trainer.checkpoint={keep}"]
    assert cli.main(["train", *words]) == 0
    directory = the_run()
    out, err = capsys.readouterr()
    assert str(directory) in out
    assert err == ""
    record = check_format(directory)
    assert (record["status"], record["stopped_by"]) == ("finished", "max_epochs")
    assert record["error"] is None
    assert (record["steps"], record["epochs"]) == (12, 3)
    assert record["seconds"] > 0
    assert record["steps_per_second"] > 0
    assert record["ended"] >= record["started"]
    assert record["choices"]["clip"] == "0.3"
    assert record["overrides"] == words
    assert set(record["test"]) == {f"test/{name}" for name in METRICS}
    assert set(record["test_last"]) == {f"test_last/{name}" for name in METRICS}
    assert set(record["train_eval"]) == {f"train_eval/{name}" for name in METRICS}
    assert set(record["metrics"]) == {"train/loss", *(f"val/{name}" for name in METRICS)}
    val_loss = column(directory / "metrics.csv", "val/loss")
    entry = record["metrics"]["val/loss"]
    assert [entry[k] for k in ("last", "min", "max")] == pytest.approx(
        [val_loss[-1], val_loss.min(), val_loss.max()]
    )
    assert record["monitor"]["metric"] == "val/loss"
    assert record["monitor"]["mode"] == "min"
    assert record["monitor"]["value"] == pytest.approx(val_loss.min())
    assert record["monitor"]["best_step"] == 4 * (int(val_loss.argmin()) + 1)
    assert (record["clip"]["algorithm"], record["clip"]["threshold"]) == ("norm", 0.3)
    coefficient = column(directory / "gradients.csv", "clip/coefficient")
    assert record["clip"]["fraction"] == pytest.approx(np.mean(coefficient < 1))
    assert set(record["clip"]["scopes"]) == set(SCOPES)
    assert checkpoints(directory) == left
    check_predictions(directory, record)


def check_predictions(directory: Path, record: dict[str, Any]) -> None:
    """Scores of the test split in its own order, which give the metrics that are recorded."""
    test = build(record["config"]).dataset.split("test")
    every = test.batch(torch.arange(len(test)))
    with np.load(directory / "predictions.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    assert set(found) == {"index", "group", "target", "best", "last"}
    assert found["index"].tolist() == list(range(len(test)))
    assert found["group"].tolist() == test.group.tolist()
    assert found["target"].tolist() == every.target.tolist()
    for name, key in (("best", "test"), ("last", "test_last")):
        assert found[name].shape == (len(test), 8)
        assert found[name].sum(axis=1) == pytest.approx(1, abs=1e-5)
        hits = found[name].argmax(axis=1) == found["target"]
        assert hits.mean() == pytest.approx(record[key][f"{key}/accuracy"])
        correct = found[name][np.arange(len(test)), found["target"]]
        assert -np.log(correct).mean() == pytest.approx(record[key][f"{key}/loss"], rel=1e-4)


def test_best_and_last_are_two_checkpoints():
    """Learning that goes wrong late: test is better at best, and the files hold what they say."""
    record = fit(
        *SMALL, "optimizer=sgd", "optimizer.lr=5", "clip=2", "schedule=constant", "seed=2",
        "trainer.max_epochs=6", "trainer.checkpoint=both",
    )  # fmt: skip
    directory = record["directory"]
    best = saved(directory, "best")
    assert best["global_step"] == record["monitor"]["best_step"] < record["steps"]
    assert saved(directory)["global_step"] == record["steps"]
    for which, key in (("best", "test"), ("last", "test_last")):
        module = build(record["config"])
        module.module.load_state_dict(saved(directory, which)["state_dict"])
        batches = module.loader("test")
        metrics = module.module.score(batches, len(batches)).metrics
        assert {f"{key}/{n}": v for n, v in metrics.items()} == pytest.approx(record[key])
    assert record["test"] != record["test_last"]


def raise_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Act at the beginning of the training step after ``step`` optimizer steps."""
    original = MultimodalModule.training_step

    def stepped(self: MultimodalModule, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            act()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(MultimodalModule, "training_step", stepped)


def fail() -> None:
    raise ArithmeticError("boom, said\nthe objective")


def test_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    raise_at(monkeypatch, 6, fail)
    assert cli.main(["train", *SMALL, "trainer.max_epochs=3"]) == 1
    err = capsys.readouterr().err
    assert "ArithmeticError: boom" in err
    assert "Traceback" not in err
    record = check_format(the_run())
    assert (record["status"], record["stopped_by"]) == ("failed", "error")
    assert record["error"].startswith("ArithmeticError: boom")
    assert record["ended"] is not None
    assert "Traceback" in (the_run() / "train.log").read_text()
    assert checkpoints(the_run()) == ["best.ckpt", "last.ckpt"]
    assert not (the_run() / "predictions.npz").exists()
    assert record["test"] == {}


def test_a_failure_without_a_word_is_its_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def silent() -> None:
        raise ArithmeticError

    raise_at(monkeypatch, 1, silent)
    words = [*SMALL, "trainer.max_epochs=1", "sweep=s", "launcher=inline"]
    assert cli.main(["train", "-m", *words]) == 1
    (run,) = Path("outputs/s").glob("*/")
    assert record_of(run)["error"] == "ArithmeticError"
    assert ": ArithmeticError  (" in capsys.readouterr().out


def test_a_failure_reaches_a_caller_in_python(monkeypatch: pytest.MonkeyPatch):
    raise_at(monkeypatch, 1, fail)
    with pytest.raises(ArithmeticError, match="boom"):
        fit(*SMALL, "trainer.max_epochs=1")
    assert record_of(the_run())["status"] == "failed"


DIVERGING = (
    *SMALL,
    "optimizer=sgd",
    "optimizer.lr=1e6",
    "schedule=constant",
    "trainer.max_epochs=9",
)


def test_diverged(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", *DIVERGING]) == 1
    assert "diverged" in capsys.readouterr().out
    record = check_format(the_run())
    assert (record["status"], record["stopped_by"]) == ("diverged", "diverged")
    assert record["stability"] == "diverged"
    assert "not finite at step" in record["error"]
    steps = column(the_run() / "gradients.csv", "step")
    losses = np.array([float(r["train/loss"]) for r in table(the_run() / "gradients.csv")])
    norms = np.array([float(r["grad/norm"]) for r in table(the_run() / "gradients.csv")])
    first = int(steps[~(np.isfinite(losses) & np.isfinite(norms))].min())
    assert record["error"].endswith(f"step {first}")
    assert record["epochs"] < 9
    assert set(record["test"]) == {f"test/{name}" for name in METRICS}
    assert (the_run() / "predictions.npz").exists()


def test_collapsed_is_finished(capsys: pytest.CaptureFixture[str]):
    words = [*SMALL, "optimizer=sgd", "optimizer.lr=0", "schedule=constant", "trainer.max_epochs=5"]
    assert cli.main(["train", *words]) == 0
    assert "collapsed" in capsys.readouterr().out
    record = check_format(the_run())
    assert (record["status"], record["stability"]) == ("finished", "collapsed")
    assert record["stopped_by"] == "max_epochs"


@pytest.mark.parametrize(
    ("signum", "code", "stopped_by"),
    [(signal.SIGINT, 130, "interrupt"), (signal.SIGTERM, 143, "terminate")],
)
def test_a_signal(
    signum: int,
    code: int,
    stopped_by: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    before = signal.getsignal(signum)
    raise_at(monkeypatch, 6, lambda: os.kill(os.getpid(), signum))
    assert cli.main(["train", *SMALL, "trainer.max_epochs=3"]) == code
    assert "Traceback" not in capsys.readouterr().err
    record = check_format(the_run())
    assert (record["status"], record["stopped_by"]) == ("killed", stopped_by)
    assert record["ended"] is not None
    assert checkpoints(the_run()) == ["best.ckpt", "last.ckpt"]
    assert signal.getsignal(signum) is before


def test_signals_are_ours_while_it_trains(monkeypatch: pytest.MonkeyPatch):
    """Lightning's own handler logs from within: at a bad moment that is a reentrant call."""
    found: list[Any] = []
    raise_at(monkeypatch, 1, lambda: found.append(signal.getsignal(signal.SIGTERM)))
    fit(*SMALL, "trainer=smoke")
    assert found == [signals._raise]


def test_a_signal_to_the_command_itself():
    child = start("train", *SMALL, "trainer.max_epochs=500")
    try:
        wait_for_rows(Path("outputs"), 20, child)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == 143
    finally:
        child.kill()
        child.wait()
    assert check_format(the_run())["stopped_by"] == "terminate"


def wait_for_rows(outputs: Path, n: int, child: subprocess.Popen[bytes]) -> None:
    """Until the only run below ``outputs`` has recorded so many steps."""
    for _ in range(6000):
        found = list(outputs.glob("*/gradients.csv"))
        if found and found[0].read_bytes().count(b"\n") > n:
            return
        assert child.poll() is None, "it ended by itself"
        time.sleep(0.02)
    raise AssertionError("no rows")


# What stops training

STOPS: dict[str, tuple[list[str], str]] = {
    "max_epochs": (["trainer.max_epochs=2"], "max_epochs"),
    "max_steps": (["trainer.max_steps=5"], "max_steps"),
    "the smaller": (["trainer.max_steps=50", "trainer.max_epochs=2"], "max_epochs"),
    "max_time": (["trainer.max_time='00:00:00:01'", "trainer.max_epochs=100000"], "max_time"),
    "patience": (["trainer.patience=2", "optimizer.lr=0", "optimizer=sgd"], "patience"),
    "min_delta": (["trainer.patience=1", "trainer.min_delta=100"], "patience"),
    "target": (["trainer.target.accuracy=0.3"], "target"),
    "target loss": (["trainer.target={loss: 1.99, accuracy: 0.2}"], "target"),
    "tolerance": (["trainer.tolerance=0.5", "optimizer.lr=1e-6", "optimizer=sgd"], "tolerance"),
}


@pytest.mark.parametrize(("overrides", "reason"), STOPS.values(), ids=STOPS)
def test_stopped_by(overrides: list[str], reason: str):
    record = fit(*SMALL, *overrides)
    assert (record["status"], record["stopped_by"]) == ("finished", reason)
    val = {n: column(record["directory"] / "metrics.csv", f"val/{n}") for n in ("loss", "accuracy")}
    epochs = record["epochs"]
    if reason == "max_steps":
        assert record["steps"] == 5
        assert column(record["directory"] / "metrics.csv", "step")[-1] == 5, "validated at its end"
    elif reason == "max_epochs":
        assert epochs == 2
    elif reason == "patience":
        assert epochs == (3 if "trainer.patience=2" in overrides else 2)
    elif reason == "tolerance":
        assert epochs == 2
    elif reason == "target":
        wanted = {"accuracy": 0.3} if len(overrides[0]) < 30 else {"accuracy": 0.2, "loss": 1.99}
        reached = val["accuracy"] >= wanted["accuracy"]
        reached &= val["loss"] <= wanted.get("loss", math.inf)
        assert reached.tolist() == [False] * (epochs - 1) + [True]
        assert record["steps_to_target"] == record["steps"] == 4 * epochs
    if reason != "target":
        assert record["steps_to_target"] is None


# What train() promises its callers


def test_a_mistake_in_the_config_makes_nothing():
    assert cli.main(["train", *SMALL, "clip=-1"]) == 2
    assert cli.main(["train", *SMALL, "trainer.target.acuracy=0.5"]) == 2
    assert cli.main(["train", "logger=none", "encoder/text=cnn"]) == 2
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "word",
    [
        "trainer.val_check_interval=5",  # of 4 batches
        "trainer.limit_train_batches=0.2",
        "trainer.limit_val_batches=0.0001",
        "trainer.limit_test_batches=0.0001",
        "trainer.max_time='00:00:00:00'",
        "trainer.patience=1.5",
        "trainer.max_epochs=0",
        "trainer.target={accuracy: 2}",
        "trainer.target={loss: -1}",
    ],
)
def test_limits_that_cannot_be_kept_make_nothing(word: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", *SMALL, word]) == 2
    assert word.split("=")[0] in capsys.readouterr().err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "words", [SMALL, ["dataset=linear", "logger=none"]], ids=["class", "value"]
)
def test_a_target_lies_in_what_its_metric_can_be(words: Sequence[str]):
    record = fit(*words, "trainer=smoke")
    goal = build(record["config"]).module.objective
    assert set(goal.ranges) == {"loss", *goal.higher_is_better}
    for name, (low, high) in goal.ranges.items():
        assert low <= record["test"][f"test/{name}"] <= high, name
        assert low == 0 or high == 1


def test_a_rate_of_missing_modalities_where_there_is_one(capsys: pytest.CaptureFixture[str]):
    words = ["train", *SMALL, "dataset.use=[a]", "trainer=smoke"]
    assert cli.main([*words, "missing.train_rate=0.3"]) == 2
    assert "a single modality" in capsys.readouterr().err
    assert cli.main(words) == 0


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_before_training_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("mmrun.runs.writer.provenance.commit", full)
    assert cli.main(["train", *SMALL, "trainer=smoke"]) == 1
    assert "No space left" in capsys.readouterr().err
    record = record_of(the_run())
    assert (record["status"], record["stopped_by"]) == ("failed", "error")
    assert "No space left" in record["error"]


def test_a_disk_that_is_too_full_to_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("mmrun.runs.writer.write_whole", full)
    assert cli.main(["train", *SMALL, "trainer=smoke"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert list(Path("outputs").iterdir()) == []


def test_a_point_in_a_given_directory_is_taken_over_and_another_is_refused():
    words = [*SMALL, "trainer=smoke"]
    first = fit(*words, directory=Path("here"))
    assert first["directory"] == Path.cwd() / "here"
    again = fit(*words, directory=Path("here"))
    assert again["id"] == first["id"]
    assert len(table(Path("here/gradients.csv"))) == 2, "started anew, not appended"
    assert cli.main(["show", "here"]) == 0
    with pytest.raises(Exception, match="another point"):
        fit(*words, "seed=1", directory=Path("here"))


def test_interrupted_is_no_exception_that_a_library_swallows():
    assert not issubclass(Interrupted, Exception)
    assert Interrupted(2).signum == 2


def test_the_record_that_train_returns_is_the_one_on_disk():
    record = train(compose.point([*SMALL, "trainer=smoke"]))
    directory = Path(record.pop("directory"))
    assert record == json.loads((directory / "run.json").read_text())
    assert checkpoints(directory) == []
