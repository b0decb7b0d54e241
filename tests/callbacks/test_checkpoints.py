"""Checkpoints: when they are written, which is best, and that they are whole or not there."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer

from mmrun.callbacks.checkpoints import Checkpoints, _second_name
from mmrun.module import MultimodalModule
from tests.running import SMALL, column, fit, record_of, saved, table, the_run

pytestmark = pytest.mark.trains

# 15 batches an epoch, a validation after each third of it.
WORDS = (
    *SMALL,
    "dataset.batch_size=16",
    "trainer.max_epochs=2",
    "trainer.val_check_interval=5",
    "trainer.checkpoint=both",
)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(step, best) of every checkpoint."""
    found: list[tuple[int, bool]] = []
    original = Checkpoints.save

    def noted(self: Checkpoints, trainer: Trainer, *, best: bool) -> None:
        found.append((trainer.global_step, best))
        original(self, trainer, best=best)

    monkeypatch.setattr(Checkpoints, "save", noted)
    return found


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Validation losses to be had, one after another."""
    values: list[float] = []
    original = MultimodalModule.on_validation_epoch_end

    def replaced(self: MultimodalModule) -> None:
        original(self)
        assert self.validation is not None
        self.validation.metrics["loss"] = values.pop(0)

    monkeypatch.setattr(MultimodalModule, "on_validation_epoch_end", replaced)
    return values


def test_best_is_the_best_and_last_the_last(written: list[tuple[int, bool]], losses: list[float]):
    losses += [3.0, 1.0, 2.0, 1.0, math.nan, 5.0]
    record = fit(*WORDS)
    assert written == [(5, True), (10, True), (15, False), (20, False), (25, False), (30, False)]
    assert saved(record["directory"], "best")["global_step"] == 10
    assert saved(record["directory"])["global_step"] == 30
    assert record["monitor"] == {
        "metric": "val/loss",
        "mode": "min",
        "value": 1.0,
        "best_step": 10,
    }


def test_fewer_checkpoints_but_every_better_one(
    written: list[tuple[int, bool]], losses: list[float]
):
    losses += [3.0, 4.0, 5.0, 4.0, 1.0, 5.0]
    fit(*WORDS, "trainer.checkpoint_every=3")
    assert written == [(5, True), (15, False), (25, True), (30, False)]


def test_the_end_is_always_saved_and_validated(written: list[tuple[int, bool]]):
    record = fit(*WORDS, "trainer.max_steps=12", "trainer.checkpoint_every=100")
    assert written[-1][0] == 12
    rows = table(record["directory"] / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [5, 10, 12]
    assert saved(record["directory"])["global_step"] == 12
    assert record["metrics"]["val/loss"]["last"] == pytest.approx(float(rows[-1]["val/loss"]))


def test_a_monitor_that_is_never_a_number(losses: list[float]):
    losses += [math.nan] * 6
    record = fit(*WORDS)
    assert record["monitor"]["best_step"] is None
    assert not (record["directory"] / "checkpoints" / "best.ckpt").exists()
    assert set(record["test"]) == {"test/loss", "test/accuracy", "test/f1_macro"}


def test_a_write_that_fails_leaves_the_old_checkpoint(monkeypatch: pytest.MonkeyPatch):
    original = Trainer.save_checkpoint

    def torn(self: Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        if self.global_step >= 15:
            Path(path).write_bytes(b"half")
            raise OSError("no space left on device")
        original(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", torn)
    with pytest.raises(OSError, match="no space"):
        fit(*WORDS)
    directory = the_run()
    assert record_of(directory)["status"] == "failed"
    assert saved(directory)["global_step"] == 10
    assert column(directory / "gradients.csv", "step")[-1] >= 10, (
        "no checkpoint is ahead of its rows"
    )


def test_files_are_flushed_before_a_checkpoint(monkeypatch: pytest.MonkeyPatch):
    original = Trainer.save_checkpoint
    behind: list[int] = []

    def looked(self: Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        rows = column(the_run() / "gradients.csv", "step")
        behind.append(self.global_step - int(rows[-1]))
        original(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", looked)
    fit(*WORDS, "trainer.log_every_n_steps=1000")
    assert behind == [0] * 6


def test_run_json_is_up_to_date_at_every_validation(monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []
    original = MultimodalModule.on_validation_epoch_end

    def looked(self: MultimodalModule) -> None:
        steps.append(record_of(the_run())["steps"] or 0)
        original(self)

    monkeypatch.setattr(MultimodalModule, "on_validation_epoch_end", looked)
    fit(*WORDS)
    assert steps == [0, 5, 10, 15, 20, 25]


def test_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new")
    target.write_text("old")
    _second_name(source, target)
    assert target.read_text() == "new"

    def refuse(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    source.write_text("newer")
    target.unlink()
    _second_name(source, target)
    assert target.read_text() == "newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
