"""The recorder: rows of the gradient pipeline to gradients.csv, means to metrics.csv and to the loggers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from mmrun.module import MultimodalModule
from mmrun.runs.layout import Paths, metrics_columns
from mmrun.runs.table import CsvTable

LOSS, LR = "train/loss", "train/lr"
# gradients.csv holds every step; metrics.csv the means over the steps since its last row. But these:
FRACTION = "clip/fraction"  # share of those steps at which the law changed any element
NONFINITE = "grad/nonfinite"  # steps with a non-finite gradient so far, in both files


class Recorder(Callback):
    """Writes metrics.csv and gradients.csv; the step's numbers stay on the device between log points.

    Args:
        paths: the run's files; None where nothing is written (every rank but the first).
        columns: of the pipeline's row.
        validation: names of the validation metrics, without ``val/``.
        every: steps between log points.
        record_every: steps between rows of gradients.csv.
    """

    def __init__(
        self,
        paths: Paths | None,
        *,
        columns: Sequence[str],
        validation: Sequence[str],
        every: int,
        record_every: int,
    ) -> None:
        self.columns = (LOSS, *columns)
        self.every = every
        self.record_every = record_every
        self.elements = self._place("clip/elements")
        self.nonfinite_at = self._place(NONFINITE)
        self.scopes = [
            (self._place(name), f"{FRACTION}/{name.removeprefix('clip/elements/')}")
            for name in columns
            if name.startswith("clip/elements/")
        ]
        self.fractions = [FRACTION, *(name for _, name in self.scopes)]
        logged = [*self.columns, LR, *self.fractions, *(f"val/{name}" for name in validation)]
        self.metrics: CsvTable | None = None
        self.gradients: CsvTable | None = None
        if paths is not None:
            self.metrics = CsvTable(paths.metrics, metrics_columns(logged))
            self.gradients = CsvTable(paths.gradients, ["step", *self.columns])
        self.started = time.monotonic()
        self.summary: dict[str, dict[str, float]] = {}  # {name: {last, min, max, best_step}}
        self.modes: dict[str, str] = {}
        self.nonfinite = 0
        self.losses: list[float] = []  # mean training loss of each window since the epoch began
        self.diverged_at: int | None = None
        self.latest: dict[str, float] = {}
        self._pending: dict[str, Any] = {}
        self._flushed = 0

    def _place(self, name: str) -> int:
        return self.columns.index(name)

    # Lightning's hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Rows are counted from the step at which training (re)starts; a diverged run does not."""
        self._flushed = trainer.global_step
        if self.diverged_at is not None:
            trainer.should_stop = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002 (Lightning's signature)
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """A log point every so many steps."""
        assert isinstance(pl_module, MultimodalModule)
        if pl_module.telemetry and trainer.global_step % self.every == 0:
            self.collect(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The window so far and the validation metrics go into one row; both files are flushed."""
        assert isinstance(pl_module, MultimodalModule)
        self.log_validation(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is left of the last window."""
        assert isinstance(pl_module, MultimodalModule)
        self.collect(trainer, pl_module)
        self.flush(trainer)

    # The work

    def log_validation(self, trainer: Trainer, module: MultimodalModule) -> None:
        """Log ``module.validation`` at the present step, with the window since the last row."""
        self.collect(trainer, module)
        assert module.validation is not None
        metrics = module.validation.metrics
        self.record(trainer, {f"val/{name}": value for name, value in metrics.items()})
        self.flush(trainer)

    def collect(self, trainer: Trainer, module: MultimodalModule) -> None:
        """Fetch the rows since the last log point: one transfer, one row of metrics.csv."""
        rows = module.take_rows()
        if rows is None:
            return
        if trainer.world_size > 1:  # gradients are equal on all ranks, losses are not
            how = "sum" if module.objective.sums else "mean"
            rows[:, 0] = trainer.strategy.reduce(rows[:, 0].contiguous(), reduce_op=how)
        table = rows.double().cpu().numpy()
        steps = np.arange(self._flushed + 1, self._flushed + 1 + len(table))
        self._flushed += len(table)
        bad = ~np.isfinite(table[:, 0])
        flagged = table[:, self.nonfinite_at] > 0
        table[:, self.nonfinite_at] = self.nonfinite + flagged.cumsum()
        self.nonfinite += int(flagged.sum())
        if (
            trainer.precision != "16-mixed"
        ):  # there an overflow is routine and the scaler's business
            bad |= flagged
        if bad.any() and self.diverged_at is None:
            self.diverged_at = int(steps[bad.argmax()])
            trainer.should_stop = True
        if self.gradients is not None:
            kept = steps % self.record_every == 0
            self.gradients.extend(
                {"step": steps[kept], **dict(zip(self.columns, table[kept].T, strict=True))}
            )
        self.losses.extend(table[:, 0].tolist())
        means = dict(zip(self.columns, table.mean(axis=0).tolist(), strict=True))
        means[NONFINITE] = self.nonfinite
        means[FRACTION] = float((table[:, self.elements] > 0).mean())
        for place, name in self.scopes:
            means[name] = float((table[:, place] > 0).mean())
        means[LR] = trainer.optimizers[0].param_groups[0]["lr"]
        self.record(trainer, means)

    def record(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Add values to the row of the present step; a later step starts a new row."""
        step = trainer.global_step
        if self._pending and self._pending["step"] != step:
            self._write(trainer)
        if not self._pending:
            elapsed = time.monotonic() - self.started
            self._pending = {"step": step, "epoch": trainer.current_epoch, "time": elapsed}
        self._pending.update(values)
        self.latest.update(values)
        for name, value in values.items():
            if name.startswith("val/") or name == LOSS:
                self._summarise(name, value, step)

    def _summarise(self, name: str, value: float, step: int) -> None:
        entry = self.summary.setdefault(
            name, {"last": value, "min": value, "max": value, "best_step": step}
        )
        better = value > entry["max"] if self.modes.get(name) == "max" else value < entry["min"]
        if better:
            entry["best_step"] = step
        entry.update(
            last=value,
            min=float(np.fmin(entry["min"], value)),
            max=float(np.fmax(entry["max"], value)),
        )

    def flush(self, trainer: Trainer) -> None:
        """Everything logged so far is in the files afterwards."""
        if self._pending:
            self._write(trainer)
        for table in (self.metrics, self.gradients):
            if table is not None:
                table.flush()

    def _write(self, trainer: Trainer) -> None:
        row, self._pending = self._pending, {}
        if self.metrics is None:
            return
        self.metrics.append(row)
        values = {name: value for name, value in row.items() if name not in ("step", "time")}
        for logger in trainer.loggers:
            logger.log_metrics(values, row["step"])

    @rank_zero_only
    def close(self) -> None:
        """Flush and close the files; safe at any ending."""
        if self.metrics is not None and self._pending:
            self.metrics.append(self._pending)
            self._pending = {}
        for table in (self.metrics, self.gradients):
            if table is not None:
                table.close()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of the rows before its checkpoint."""
        return {
            "summary": {name: dict(entry) for name, entry in self.summary.items()},
            "nonfinite": self.nonfinite,
            "losses": list(self.losses),
            "diverged_at": self.diverged_at,
            "elapsed": time.monotonic() - self.started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting from a checkpoint."""
        self.summary = {name: dict(entry) for name, entry in state_dict["summary"].items()}
        self.nonfinite = state_dict["nonfinite"]
        self.losses = list(state_dict["losses"])
        self.diverged_at = state_dict["diverged_at"]
        self.started = time.monotonic() - state_dict["elapsed"]
