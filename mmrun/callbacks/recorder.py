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
from mmrun.runs.features import MAXIMA, PREFIX
from mmrun.runs.layout import Paths, metrics_columns
from mmrun.runs.table import CsvTable

LOSS, LR = "train/loss", "train/lr"
# gradients.csv holds every step; metrics.csv the means over the steps since its last row. But these, and the largest
# feature and gradient, of which it has the largest:
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
        columns: of the module's row, after the loss.
        validation: names of the validation metrics, without ``val/``.
        diagnostics: that look at the rows, too.
        every: steps between log points.
        record_every: steps between rows of gradients.csv. What is counted is counted at every step.
        patience: steps in a row that are not finite and end the run as diverged.
        strict: one such step ends it with an error.
    """

    # What a resumed run must know of the steps before its checkpoint.
    STATE = (
        "summary",
        "nonfinite",
        "losses",
        "diverged_at",
        "row",
        "engaged",
        "changed",
        "features",
    )

    def __init__(
        self,
        paths: Paths | None,
        *,
        columns: Sequence[str],
        validation: Sequence[str],
        diagnostics: Diagnostics,
        every: int,
        record_every: int,
        patience: int = 1,
        strict: bool = False,
    ) -> None:
        self.columns = (LOSS, *columns)
        self.diagnostics = diagnostics
        self.every = every
        self.record_every = record_every
        self.patience = patience
        self.strict = strict
        self.elements = self._place(ELEMENTS)
        self.nonfinite_at = self._place(NONFINITE)
        self.scopes = [
            (self._place(name), f"{FRACTION}/{name.removeprefix(f'{ELEMENTS}/')}")
            for name in columns
            if name.startswith(f"{ELEMENTS}/")
        ]
        self.fractions = [FRACTION, *(name for _, name in self.scopes)]
        features = [name for name in columns if name.startswith(PREFIX)]
        self.largest = [self._place(n) for n in features if n.startswith(MAXIMA)]
        self.shares = [self._place(n) for n in features if not n.startswith(MAXIMA)]
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
        self.row = 0  # steps in a row, up to the last one, that were not finite
        self.engaged = dict.fromkeys(
            self.fractions, 0
        )  # steps at which the law changed any element
        self.changed = 0.0  # the sum over steps of the share of elements changed
        self.features: dict[str, float] = {}  # over steps: sums of shares, and the largest
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
        if self.row and self.diverged_at is None:  # it ended before the row was long enough
            self.diverged_at = self._flushed - self.row + 1

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
            # A rank has seen its own part of each batch, of the same size as the others'.
            for places, how in ((self.shares, "mean"), (self.largest, "max")):
                if places:
                    own = rows[:, places].contiguous()
                    rows[:, places] = trainer.strategy.reduce(own, reduce_op=how)
        table = rows.double().cpu().numpy()
        steps = np.arange(self._flushed + 1, self._flushed + 1 + len(table))
        self._flushed += len(table)
        bad = ~np.isfinite(table[:, 0])  # the loss of those steps
        flagged = table[:, self.nonfinite_at] > 0
        table[:, self.nonfinite_at] = self.nonfinite + flagged.cumsum()
        self.nonfinite += int(flagged.sum())
        if (
            trainer.precision != "16-mixed"
        ):  # there an overflow is routine and the scaler's business
            bad |= flagged
        if self.gradients is not None:
            kept = steps % self.record_every == 0
            self.gradients.extend(
                {"step": steps[kept], **dict(zip(self.columns, table[kept].T, strict=True))}
            )
        self.losses.extend(table[:, 0].tolist())
        self._history.append(table[:, 0].astype(np.float32))
        means = dict(zip(self.columns, _means(table, bad).tolist(), strict=True))
        means[NONFINITE] = self.nonfinite
        self.changed += float(table[:, self.elements].sum())
        for place, name in [(self.elements, FRACTION), *self.scopes]:
            engaged = table[:, place] > 0
            self.engaged[name] += int(engaged.sum())
            means[name] = float(engaged.mean())
        self._count_features(table, means)
        means[LR] = trainer.optimizers[0].param_groups[0]["lr"]
        rows = dict(zip(self.columns, table.T, strict=True))
        self.record(trainer, means | self.diagnostics.fetched(steps, rows))
        self._judge(trainer, bad, steps)  # last: what it raises over is in the files

    def _judge(self, trainer: Trainer, bad: NDArray[np.bool_], steps: NDArray[np.int64]) -> None:
        """Is this the row of steps that ends the training?

        Raises:
            FloatingPointError: a step was not finite, and the recorder is strict.
        """
        if self.strict and bad.any():
            self.flush(trainer)
            step = int(steps[bad.argmax()])
            raise FloatingPointError(
                f"the loss or a gradient was not finite at step {step} (clip.nonfinite=raise)"
            )
        for step, each in zip(steps.tolist(), bad.tolist(), strict=True):
            self.row = self.row + 1 if each else 0
            if self.row == self.patience and self.diverged_at is None:
                self.diverged_at = step - self.row + 1
                trainer.should_stop = True

    def _count_features(self, table: NDArray[np.float64], means: dict[str, float]) -> None:
        """Keep what feature clipping did in these steps [T, 1 + C]; of the largest, ``means`` gets the largest."""
        for place in self.shares:
            name = self.columns[place]
            self.features[name] = self.features.get(name, 0.0) + float(table[:, place].sum())
        for place in self.largest:
            name = self.columns[place]
            means[name] = float(table[:, place].max())
            self.features[name] = max(self.features.get(name, 0.0), means[name])

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

    def feature_counts(self) -> dict[str, float]:
        """Over every step: the mean share of what was clipped, by column, and the largest; {} with both clips off."""
        steps = max(len(self.history()), 1)
        largest = {self.columns[place] for place in self.largest}
        return {n: v if n in largest else v / steps for n, v in self.features.items()}

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


def _means(table: NDArray[np.float64], bad: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Means over the steps that were finite [C]; over all where none was."""
    return table[~bad if not bad.all() else slice(None)].mean(axis=0)
