"""The recorder: rows of the gradient pipeline to gradients.csv, means to metrics.csv and to the loggers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from mmrun.diagnostics import Diagnostics
from mmrun.module import MultimodalModule
from mmrun.runs.layout import Paths, metrics_columns
from mmrun.runs.table import CsvTable

LOSS, LR = "train/loss", "train/lr"
# gradients.csv holds every step; metrics.csv the means over the steps since its last row. But these:
ELEMENTS = "clip/elements"
FRACTION = "clip/fraction"  # share of those steps at which the law changed any element
NONFINITE = "grad/nonfinite"  # steps with a non-finite gradient so far, in both files
Array = NDArray[np.float32]


def headers(
    columns: Iterable[str], validation: Iterable[str], diagnostics: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Columns of metrics.csv and of gradients.csv, from the pipeline's columns, the validation metrics and the diagnostics'."""
    row = [LOSS, *columns]
    scopes = [name.removeprefix(ELEMENTS) for name in row if name.startswith(ELEMENTS)]
    fractions = [f"{FRACTION}{scope}" for scope in scopes]
    logged = [*row, LR, *fractions, *(f"val/{name}" for name in validation), *diagnostics]
    return metrics_columns(logged), ["step", *row]


def epochs_begun(trainer: Trainer) -> int:
    """Right also after an epoch's end, where ``trainer.current_epoch`` is one ahead."""
    return trainer.fit_loop.epoch_progress.current.ready


class Recorder(Callback):
    """Writes metrics.csv and gradients.csv; the step's numbers stay on the device between log points.

    Args:
        paths: the run's files; None where nothing is written (every rank but the first).
        columns: of the pipeline's row.
        validation: names of the validation metrics, without ``val/``.
        diagnostics: that look at the rows, too.
        every: steps between log points.
        record_every: steps between rows of gradients.csv. What is counted is counted at every step.
    """

    # What a resumed run must know of the steps before its checkpoint.
    STATE = ("summary", "nonfinite", "losses", "diverged_at", "engaged", "changed")

    def __init__(
        self,
        paths: Paths | None,
        *,
        columns: Sequence[str],
        validation: Sequence[str],
        diagnostics: Diagnostics,
        every: int,
        record_every: int,
    ) -> None:
        self.columns = (LOSS, *columns)
        self.diagnostics = diagnostics
        self.every = every
        self.record_every = record_every
        self.elements = self._place(ELEMENTS)
        self.nonfinite_at = self._place(NONFINITE)
        self.scopes = [
            (self._place(name), f"{FRACTION}/{name.removeprefix(f'{ELEMENTS}/')}")
            for name in columns
            if name.startswith(f"{ELEMENTS}/")
        ]
        self.fractions = [FRACTION, *(name for _, name in self.scopes)]
        self.metrics: CsvTable | None = None
        self.gradients: CsvTable | None = None
        if paths is not None:
            of_metrics, of_gradients = headers(columns, validation, diagnostics.columns)
            self.metrics = CsvTable(paths.metrics, of_metrics)
            self.gradients = CsvTable(paths.gradients, of_gradients)
        self.started = time.monotonic()
        self.summary: dict[str, dict[str, float]] = {}  # {name: {last, min, max, best_step}}
        self.modes: dict[str, str] = {}
        self.nonfinite = 0
        self.losses: list[float] = []  # mean training loss of each window since the epoch began
        self.diverged_at: int | None = None
        self.engaged = dict.fromkeys(
            self.fractions, 0
        )  # steps at which the law changed any element
        self.changed = 0.0  # the sum over steps of the share of elements changed
        self.latest: dict[str, float] = {}
        self._pending: dict[str, Any] = {}
        self._history: list[Array] = []  # training losses of all steps, in pieces
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
        """What is left of the last window; a validation that closes the training belongs to its row."""
        assert isinstance(pl_module, MultimodalModule)
        self.collect(trainer, pl_module)

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
        self._history.append(table[:, 0].astype(np.float32))
        means = dict(zip(self.columns, table.mean(axis=0).tolist(), strict=True))
        means[NONFINITE] = self.nonfinite
        self.changed += float(table[:, self.elements].sum())
        for place, name in [(self.elements, FRACTION), *self.scopes]:
            engaged = table[:, place] > 0
            self.engaged[name] += int(engaged.sum())
            means[name] = float(engaged.mean())
        means[LR] = trainer.optimizers[0].param_groups[0]["lr"]
        rows = dict(zip(self.columns, table.T, strict=True))
        self.record(trainer, means | self.diagnostics.fetched(steps, rows))

    def record(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Add values to the row of the present step; a later step starts a new row."""
        step = trainer.global_step
        if self._pending and self._pending["step"] != step:
            self._write(trainer)
        if not self._pending:
            elapsed = time.monotonic() - self.started
            self._pending = {"step": step, "epoch": epochs_begun(trainer) - 1, "time": elapsed}
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

    def history(self) -> Array:
        """The training loss of every step so far [T], whether or not its row was recorded."""
        self._history = [np.concatenate([np.empty(0, np.float32), *self._history])]
        return self._history[0]

    def counted(self) -> dict[str, float]:
        """Over every step: shares at which the law changed anything, elements changed, non-finite gradients."""
        steps = max(len(self.history()), 1)
        shares = {name: engaged / steps for name, engaged in self.engaged.items()}
        return {**shares, ELEMENTS: self.changed / steps, NONFINITE: self.nonfinite}

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
        """What a resumed run must know of the steps before its checkpoint."""
        return {
            **deepcopy({name: getattr(self, name) for name in self.STATE}),
            "history": torch.from_numpy(self.history().copy()),
            "elapsed": time.monotonic() - self.started,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting from a checkpoint."""
        for name in self.STATE:
            setattr(self, name, deepcopy(state_dict[name]))
        self._history = [state_dict["history"].numpy()]
        self.started = time.monotonic() - state_dict["elapsed"]
