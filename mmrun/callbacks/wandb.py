"""One training's run at W&B: begun with the run's own words, fed by Lightning, ended whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from mmrun import tracking
from mmrun.runs.writer import Run

TAGGED = ("clip", "fusion", "dataset")  # groups whose choices are tags


class WandbRun:
    """The W&B side of one training; with mode none it does nothing.

    Args:
        mode: from ``tracking.mode``.
        line: what ``tracking.mode`` wants said.
        say: prints a line.
        alarm: prints a line that must not be missed.
    """

    def __init__(
        self,
        mode: tracking.Mode,
        line: str,
        *,
        say: Callable[[str], None],
        alarm: Callable[[str], None],
    ) -> None:
        self.mode: tracking.Mode = mode
        self.line = line
        self.say = say
        self.alarm = alarm
        self.run: Any = None

    def id_after(self, previous: Mapping[str, Any], *, resume: bool) -> str | None:
        """The id to be stored before anything is sent: a new one, or that of the run that is resumed."""
        if self.mode == "none":
            return None
        return (previous.get("id") if resume else None) or tracking.new_id()

    def start(
        self,
        run: Run,
        config: Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
        *,
        resume: bool,
    ) -> None:
        """Begin, or go on, and write down where it went."""
        if self.mode == "none":
            return
        if self.line:
            self.say(self.line)
        options, record = config["logger"], run.record
        choices = record["choices"]
        if self.mode == "online" and resume and record["wandb"]["mode"] == "offline":
            # An earlier part that is uploaded after this one would overwrite its ending.
            self.mode = "offline"
            self.say(f"W&B: offline, as this run began; upload with: {tracking.later()}")
        self.run = tracking.start(
            self.mode,
            id=record["wandb"]["id"],
            name=record["name"],
            directory=tracking.home(run.directory, record["sweep"]),
            config={**config, **hyperparameters, "id": record["id"]},
            project=options.get("project") or tracking.PROJECT,
            entity=options.get("entity"),
            group=options.get("group") or record["sweep"],
            tags=[
                *options.get("tags", []),
                *(choices[group] for group in TAGGED if group in choices),
            ],
            say=self.alarm,
        )
        run.update(wandb=tracking.describe(self.run, self.mode))

    def loggers(self) -> list[Logger]:
        """What Lightning logs to."""
        return [] if self.run is None else [_Forgiving(experiment=self.run)]

    def finish(self, exit_code: int, record: Mapping[str, Any] | None = None) -> None:
        """End it, with the final scores where there is a record of them; a second call does nothing."""
        run, self.run = self.run, None
        if record is not None:
            tracking.summarise(run, record)
        tracking.finish(run, exit_code)


class _Forgiving(WandbLogger):
    """A W&B that fails is said once, and ends no training: the run's own files have every row."""

    failed = False

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: the run was begun with them, in a form that W&B can read."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.failed:
            return
        try:
            super().log_metrics(tracking.sendable(metrics), step)
        except Exception as error:
            self.failed = True
            logging.getLogger("mmrun").error("W&B: logging has stopped (%s)", error)
