"""What a person sees while it trains: a bar in a terminal, one line per validation elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmrun.callbacks.recorder import FRACTION, LOSS, Recorder, epochs_begun

REDRAW_S = 0.1
FOR_BAR, FOR_TIME = 95, 75  # columns of a terminal below which these are left out for the values


class ProgressBar(Callback):
    """A bar over all steps, with loss, metric and clip fraction as of the last log point.

    Args:
        recorder: whose latest values are shown.
        total: optimizer steps planned.
        metric: validation metric shown, without ``val/``.
        console: the terminal.
        label: what is trained.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        total: int,
        metric: str,
        console: Console,
        label: str = "training",
    ) -> None:
        self.recorder = recorder
        self.metric = metric
        self.total = total
        self.drawn = 0.0
        self.short = console.width < FOR_TIME
        wide = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=None)]
        self.bar = Progress(
            *(wide if console.width >= FOR_BAR else ()),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            *(() if self.short else [TimeRemainingColumn()]),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self.task = self.bar.add_task(label, total=total, values="")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Draw it."""
        self.bar.start()
        self._draw(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Redraw, at most ten times a second."""
        if time.monotonic() - self.drawn > REDRAW_S:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Take it away."""
        self.bar.stop()

    def on_exception(self, *_: Any, **__: Any) -> None:
        """Take it away also when training ends badly."""
        self.bar.stop()

    def _draw(self, trainer: Trainer) -> None:
        self.drawn = time.monotonic()
        values = _values(self.recorder.latest, self.metric, short=self.short)
        self.bar.update(self.task, completed=trainer.global_step, values=values, refresh=True)


class ProgressLines(Callback):
    """One line per validation, for logs and pipes.

    Args:
        recorder: whose latest values are shown.
        metric: validation metric shown, without ``val/``.
        say: prints a line.
    """

    def __init__(self, recorder: Recorder, *, metric: str, say: Callable[[str], None]) -> None:
        self.recorder = recorder
        self.metric = metric
        self.say = say
        self.step = -1  # of the last line

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """The line."""
        self.step = trainer.global_step
        values = _values(self.recorder.latest, self.metric)
        self.say(f"epoch {epochs_begun(trainer):3d}  step {self.step:6d}  {values}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The line of the validation that closes a training which ended between two."""
        if self.recorder.latest and self.step != trainer.global_step:
            self.on_validation_end(trainer, pl_module)


def _values(latest: dict[str, float], metric: str, *, short: bool = False) -> str:
    shown = {
        "loss": latest.get(LOSS),
        "val loss": None if short else latest.get("val/loss"),
        metric: latest.get(f"val/{metric}"),
    }
    words = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
    if FRACTION in latest:
        words.append(f"clipped {100 * latest[FRACTION]:.0f} %")
    return "  ".join(words)
