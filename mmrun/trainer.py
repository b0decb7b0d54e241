"""The trainer group: what a user may say about training, checked, and the Lightning Trainer it stands for."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy

from mmrun.errors import UserError

DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """conf/trainer: Lightning's own words where Lightning has one. Units are in conf/trainer/default.yaml."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: int
    num_nodes: int
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
    deterministic: bool
    max_epochs: int
    max_steps: int
    max_time: str | None
    accumulate_grad_batches: int
    val_check_interval: int | float
    check_val_every_n_epoch: int
    limit_train_batches: int | float
    limit_val_batches: int | float
    limit_test_batches: int | float
    log_every_n_steps: int
    enable_progress_bar: bool
    patience: float
    min_delta: float
    target: Mapping[str, float]
    tolerance: float
    checkpoint: Literal["best", "both", "none"]
    checkpoint_every: int

    def __post_init__(self) -> None:
        at_least_one = (
            "devices",
            "num_nodes",
            "accumulate_grad_batches",
            "log_every_n_steps",
            "checkpoint_every",
            "check_val_every_n_epoch",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise _wrong(name, getattr(self, name), "Give 1 or more.")
        if self.max_epochs < 1 and (self.max_steps < 1 or self.max_epochs != -1):
            raise _wrong("max_epochs", self.max_epochs, "Give 1 or more, or set trainer.max_steps.")
        if self.max_steps < 1 and self.max_steps != -1:
            raise _wrong("max_steps", self.max_steps, "Give 1 or more; -1 is no limit.")
        if self.max_time is not None and DURATION.fullmatch(self.max_time) is None:
            raise _wrong("max_time", self.max_time, "Write DD:HH:MM:SS, e.g. '00:00:30:00'.")
        if self.max_time is not None and not self.max_time.strip("0:"):
            raise _wrong("max_time", self.max_time, "Give a time; null is no limit.")
        for name in (
            "val_check_interval",
            "limit_train_batches",
            "limit_val_batches",
            "limit_test_batches",
        ):
            value = getattr(self, name)
            if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
                raise _wrong(name, value, "Give a share such as 0.5, or a number of batches.")
        for name in ("patience", "min_delta", "tolerance"):
            value = getattr(self, name)
            if math.isnan(value) or value < 0:
                raise _wrong(name, value, "Give 0 or more.")
        if self.patience < 1 or (self.patience < math.inf and self.patience % 1):
            raise _wrong(
                "patience", self.patience, "Give a whole number of validations; .inf is off."
            )
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise _wrong("accelerator", "gpu", "There is no CUDA device here; use trainer=default.")
        if self.on_gpu and self.devices > (here := torch.cuda.device_count()):
            raise _wrong("devices", self.devices, f"This machine has {here}.")
        if self.precision == "16-mixed" and not self.on_gpu:
            raise _wrong("precision", self.precision, "16-mixed needs a GPU; use bf16-mixed.")

    def check_batches(self, batches: Mapping[str, int]) -> None:
        """Raise UserError where a limit leaves no batch, or validation would never come.

        Args:
            batches: {split: batches in it}.
        """
        for split, n in batches.items():
            name = f"limit_{split}_batches"
            value = getattr(self, name)
            if isinstance(value, float) and int(n * value) < 1:
                remedy = f"Of {n} that is none: give {1 / n:.3g} or more, or a number of batches."
                raise _wrong(name, value, remedy)
        train = limited(self.limit_train_batches, batches["train"])
        if isinstance(self.val_check_interval, int) and self.val_check_interval > train:
            remedy = f"An epoch has {train} batches: give at most that."
            raise _wrong("val_check_interval", self.val_check_interval, remedy)

    @property
    def on_gpu(self) -> bool:
        """Whether training will be on a CUDA device."""
        return self.accelerator == "gpu" or (
            self.accelerator == "auto" and torch.cuda.is_available()
        )

    @property
    def distributed(self) -> bool:
        """Whether training is spread over processes."""
        return self.devices * self.num_nodes > 1

    def total_steps(self, batches: int) -> int:
        """Optimizer steps that are planned, for schedules. batches: per epoch, of the whole set."""
        used = limited(self.limit_train_batches, batches)
        per_epoch = math.ceil(used / self.accumulate_grad_batches)
        planned = per_epoch * self.max_epochs if self.max_epochs > 0 else self.max_steps
        return planned if self.max_steps < 1 else min(planned, self.max_steps)

    @property
    def mixed(self) -> torch.dtype | None:
        """The type that autocast computes in; None without autocast."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)


class _NoProfiler(PassThroughProfiler):
    """Measures nothing, without making a context manager for each of the 100 things in a step (0.1 ms)."""

    def profile(self, action_name: str) -> Any:  # noqa: ARG002 (Lightning's signature)
        return _NOTHING


_NOTHING = contextlib.nullcontext()


def limited(limit: int | float, batches: int) -> int:
    """How many of ``batches`` a share or a number of batches allows, as Lightning counts; one at least."""
    return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))


def make_trainer(
    options: TrainerOptions,
    *,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> Trainer:
    """The Lightning Trainer of these options. It never clips: the gradient pipeline does."""
    strategy: Any = "auto"
    if options.distributed:
        # No model here has buffers to keep equal, and ranks may score different numbers of batches.
        strategy = DDPStrategy(broadcast_buffers=False)
    # Named, so that Lightning does not take a SLURM job, or a machine with srun on it, for one of its own.
    ranks: ClusterEnvironment = LightningEnvironment()
    if TorchElasticEnvironment.detect():
        ranks = TorchElasticEnvironment()
    warnings.filterwarnings("ignore", "The `srun` command is available")  # a machine with SLURM
    return Trainer(
        plugins=[ranks],
        accelerator="gpu" if options.on_gpu else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        precision=options.precision,
        deterministic=options.deterministic,
        max_epochs=options.max_epochs,
        max_steps=options.max_steps,
        max_time=options.max_time,
        accumulate_grad_batches=options.accumulate_grad_batches,
        val_check_interval=options.val_check_interval,
        check_val_every_n_epoch=options.check_val_every_n_epoch,
        limit_train_batches=options.limit_train_batches,
        limit_val_batches=options.limit_val_batches,
        log_every_n_steps=options.log_every_n_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        profiler=_NoProfiler(),
    )


def _wrong(name: str, value: object, remedy: str) -> UserError:
    return UserError(f"trainer.{name} cannot be this", given=value, remedy=remedy)
