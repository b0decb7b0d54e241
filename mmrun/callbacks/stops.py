"""When to stop: no better monitor for a while, every target reached, or a loss that no longer moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mmrun.callbacks.recorder import Recorder
from mmrun.module import MultimodalModule


class Stops(Callback):
    """Sets ``stopped_by`` and asks Lightning to stop; decided alike on every rank.

    Args:
        recorder: whose window of training losses the tolerance looks at.
        patience: validations without a better monitor; inf is off.
        min_delta: by how much the monitor must improve to be better.
        target: {validation metric: value to reach}; empty is off.
        tolerance: least change of an epoch's mean training loss; 0 is off.
        higher_is_better: {metric: bool} of the objective.
        monitor: the validation metric that decides what is best.
    """

    STATE = ("best", "waited", "epoch_loss", "steps_to_target", "stopped_by")

    def __init__(
        self,
        recorder: Recorder,
        *,
        patience: float,
        min_delta: float,
        target: Mapping[str, float],
        tolerance: float,
        higher_is_better: Mapping[str, bool],
        monitor: str,
    ) -> None:
        self.recorder = recorder
        self.patience = patience
        self.min_delta = min_delta
        self.target = dict(target)
        self.tolerance = tolerance
        self.higher_is_better = higher_is_better
        self.monitor = monitor
        self.sign = 1.0 if higher_is_better.get(monitor, False) else -1.0
        self.best = -math.inf
        self.waited = 0
        self.epoch_loss = math.inf
        self.steps_to_target: int | None = None
        self.stopped_by: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """A run that was resumed after it had decided to stop stops."""
        if self.stopped_by is not None:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Patience and targets."""
        assert isinstance(pl_module, MultimodalModule)
        assert pl_module.validation is not None
        values = pl_module.validation.metrics
        score = self.sign * values[self.monitor]
        if score > self.best + self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            self._stop(trainer, "patience")
        if self.target and all(self._reached(name, values[name]) for name in self.target):
            self.steps_to_target = self.steps_to_target or trainer.global_step
            self._stop(trainer, "target")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The tolerance, over the epoch's mean training loss."""
        assert isinstance(pl_module, MultimodalModule)
        if self.tolerance > 0:
            self.recorder.collect(trainer, pl_module)
        losses, self.recorder.losses = self.recorder.losses, []
        if not losses:
            return
        mean = math.fsum(losses) / len(losses)
        if abs(mean - self.epoch_loss) < self.tolerance:
            self._stop(trainer, "tolerance")
        self.epoch_loss = mean

    def _reached(self, name: str, value: float) -> bool:
        wanted = self.target[name]
        return value >= wanted if self.higher_is_better.get(name, False) else value <= wanted

    def _stop(self, trainer: Trainer, reason: str) -> None:
        self.stopped_by = self.stopped_by or reason
        trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Counters that a resumed run continues."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting from a checkpoint."""
        for name in self.STATE:
            setattr(self, name, state_dict[name])
