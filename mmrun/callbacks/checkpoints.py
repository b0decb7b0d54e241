"""Checkpoints: last.ckpt and best.ckpt, whole or not at all, and run.json at every validation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mmrun.callbacks.recorder import Recorder, epochs_begun
from mmrun.callbacks.stops import Stops
from mmrun.module import MultimodalModule, Scores
from mmrun.runs.layout import Paths
from mmrun.runs.writer import Run


class Checkpoints(Callback):
    """Saves after validations; the recorder's files are flushed first, so that no row is ahead of them.

    Args:
        paths: the run's files.
        run: whose run.json is updated; None on every rank but the first.
        recorder, stops: whose progress goes into run.json.
        every: validations between checkpoints.
        monitor: validation metric that decides what is best.
        higher: whether a higher monitor is better.
        validate: scores the validation split now.
        seconds: that the run has taken so far.
        id: of the run, so that no other one goes on from its checkpoints.
    """

    STATE = ("validations", "validated_step", "epochs", "best", "best_step")

    def __init__(
        self,
        paths: Paths,
        run: Run | None,
        recorder: Recorder,
        stops: Stops,
        *,
        every: int,
        monitor: str,
        higher: bool,
        validate: Callable[[], Scores],
        seconds: Callable[[], float],
        id: str,
    ) -> None:
        self.paths = paths
        self.run = run
        self.recorder = recorder
        self.stops = stops
        self.every = every
        self.monitor = monitor
        self.sign = 1.0 if higher else -1.0
        self.validations = 0
        self.best = -math.inf
        self.best_step: int | None = None
        self.validate = validate
        self.seconds = seconds
        self.id = id
        self.validated_step = -1
        self.epochs = 0  # begun, as of the last validation
        self.saved_step = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint every so many validations; always one when the monitor is better."""
        assert isinstance(pl_module, MultimodalModule)
        self.validations += 1
        self.validated_step = trainer.global_step
        self.epochs = epochs_begun(trainer)
        assert pl_module.validation is not None
        score = self.sign * pl_module.validation.metrics[self.monitor]
        better = score > self.best
        if better:
            self.best, self.best_step = score, trainer.global_step
        if better or self.validations % self.every == 0:
            self.save(trainer, best=better)
        self._update_record(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where training ended between two validations, validate once more: last is where it ended."""
        assert isinstance(pl_module, MultimodalModule)
        fresh = self.validated_step != trainer.global_step
        if fresh or pl_module.validation is None:  # None: resumed where nothing was left to train
            pl_module.validation = self.validate()
        if fresh:
            self.recorder.log_validation(trainer, pl_module)
            self.stops.on_validation_end(trainer, pl_module)
            self.on_validation_end(trainer, pl_module)
        if self.saved_step != trainer.global_step:
            self.save(trainer, best=False)
        self.recorder.flush(trainer)

    def on_save_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002 (Lightning's signature)
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Whose it is."""
        checkpoint["run"] = self.id

    def save(self, trainer: Trainer, *, best: bool) -> None:
        """last.ckpt, and best.ckpt as a second name of the same file; every rank calls it."""
        self.recorder.flush(trainer)
        self.saved_step = trainer.global_step
        self.paths.checkpoints.mkdir(exist_ok=True)
        temporary = self.paths.checkpoints / ".saving.ckpt"
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                if best:
                    _second_name(temporary, self.paths.best)
                temporary.replace(self.paths.last)
        except BaseException:  # a signal too: what is half made goes, what was there stays
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
            raise

    def _update_record(self, trainer: Trainer) -> None:
        if self.run is None:
            return
        self.run.update(
            metrics=self.recorder.summary,
            steps=trainer.global_step,
            seconds=self.seconds(),
            epochs=self.epochs,
            steps_to_target=self.stops.steps_to_target,
        )

    def state_dict(self) -> dict[str, Any]:
        """What is best so far."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for name in self.STATE:
            setattr(self, name, state_dict[name])
        self.saved_step = self.validated_step


def _second_name(source: Path, target: Path) -> None:
    """``target`` becomes another name of ``source``'s content, whole or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(source.read_bytes())
    temporary.replace(target)
