"""Brings diagnostics to a training: calls them on both sides of a measured step and logs what they found."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from mmrun.batch import Batch
from mmrun.callbacks.recorder import Recorder
from mmrun.diagnostics import Aside, Diagnostics
from mmrun.module import MultimodalModule, sum_of


class Diagnosis(Callback):
    """The hooks of ``Diagnostics``; what they measure goes into the recorder's row of that step.

    Between the two sides of a step no checkpoint is written, so that nothing half measured is ever resumed.

    Args:
        diagnostics: what is measured; its columns are the recorder's.
        recorder: writes it down.
    """

    def __init__(self, diagnostics: Diagnostics, recorder: Recorder) -> None:
        self.diagnostics = diagnostics
        self.recorder = recorder
        self._batch: Batch | None = None
        self._aside: Aside | None = None
        self._values: dict[str, Tensor] = {}

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002 (Lightning's signature)
        pl_module: LightningModule,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """The batch that a step may be about to be made of."""
        self._batch = batch

    def on_before_optimizer_step(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer,  # noqa: ARG002 (Lightning's signature)
    ) -> None:
        """The weights that the step starts from, under automatic and manual optimization."""
        if not self.diagnostics.due(trainer.global_step + 1):
            return
        assert isinstance(pl_module, MultimodalModule)
        assert self._batch is not None
        self._aside = _aside_of(pl_module)
        self._values = self.diagnostics.before(self._aside, self._batch)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002 (Lightning's signature)
        outputs: Any,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """The weights that it ends with; then one transfer, and one collective where there are ranks."""
        aside, self._aside, self._batch = self._aside, None, None
        if aside is None:
            return
        values = {**self._values, **self.diagnostics.after(aside, batch)}
        self._values = {}
        numbers = torch.stack(list(values.values()))
        if trainer.world_size > 1:
            numbers = trainer.strategy.reduce(numbers, reduce_op="mean")
        measured = dict(zip(values, numbers.tolist(), strict=True))
        self.recorder.record(trainer, self.diagnostics.logged(measured))

    def state_dict(self) -> dict[str, Any]:
        """That of the diagnostics."""
        return self.diagnostics.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.diagnostics.load_state_dict(state_dict)


def _aside_of(module: MultimodalModule) -> Aside:
    def loss(batch: Batch) -> Tensor:
        # Not what balance adds: its methods keep what they have seen, and would see this too.
        output = module(batch)
        return sum_of({**module.objective.losses(batch, output), **module.model.missing.losses()})

    return Aside(loss, module, sums=module.objective.sums)
