"""Where things are in a run directory, and what a run directory is called. Pure: touches no disk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mmrun.spec import Point

NAME_BYTES = 120
ID_DIGITS = 8
RECORD = "run.json"
SWEEP_RECORD = "sweep.json"
LOCK = "lock"
STUDY = "study.journal"  # beside sweep.json where a sweeper chooses: its trials
CANCEL = "cancel"  # in a sweep's folder: a request to its driver to end it
METRICS_KEYS = ("step", "epoch", "time")
_UNSAFE = re.compile(r"[/\\\s\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Paths:
    """The files of one run directory.

    Args:
        directory: the run directory.
    """

    directory: Path

    @property
    def record(self) -> Path:
        """run.json: what the run was, is and gave."""
        return self.directory / RECORD

    @property
    def config(self) -> Path:
        """The resolved config as YAML, for people; run.json holds the one that counts."""
        return self.directory / ".hydra" / "config.yaml"

    @property
    def overrides(self) -> Path:
        """The user's overrides as YAML, for people."""
        return self.directory / ".hydra" / "overrides.yaml"

    @property
    def metrics(self) -> Path:
        """One row per step at which anything was logged."""
        return self.directory / "metrics.csv"

    @property
    def gradients(self) -> Path:
        """One row per recorded optimizer step: norms, threshold, coefficient."""
        return self.directory / "gradients.csv"

    @property
    def predictions(self) -> Path:
        """Test index, group, target and scores at the best and the last checkpoint."""
        return self.directory / "predictions.npz"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.directory / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint: what ``mmrun resume`` continues from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The best checkpoint by the monitor: what ``mmrun.load`` loads."""
        return self.checkpoints / "best.ckpt"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.directory / "train.log"

    @property
    def diff(self) -> Path:
        """How the checkout differed from its commit; absent when it was clean."""
        return self.directory / "code.diff"

    @property
    def wandb(self) -> Path:
        """The W&B folder of a single run; a sweep has one for all its points."""
        return self.directory / "wandb"

    @property
    def evaluations(self) -> Path:
        """Scores under other test conditions, one JSON file each."""
        return self.directory / "eval"


def slug(name: str) -> str:
    """Make a name safe as a folder name, at most 120 bytes.

    Slashes, spaces and control characters become ``_``; so does a leading ``.`` (hidden) or ``-``
    (an option to every shell command).

    >>> slug("clip=0.5,dataset.path=a/b c")
    'clip=0.5,dataset.path=a_b_c'
    """
    text = _UNSAFE.sub("_", name.strip())
    if text[:1] in (".", "-"):
        text = "_" + text[1:]
    return text.encode()[:NAME_BYTES].decode(errors="ignore") or "run"


def point_name(point: Point) -> str:
    """Folder name of a point of a sweep: its name, then eight digits of its id."""
    return f"{slug(point.name)}_{point.id[:ID_DIGITS]}"


def point_directory(sweep: Path, point: Point) -> Path:
    """Where a sweep keeps a point."""
    return sweep / point_name(point)


def run_name(point: Point, when: datetime) -> str:
    """Folder name of a single run: date, time, name, eight digits of its id."""
    return f"{when:%Y-%m-%d_%H-%M-%S}_{point_name(point)}"


def metrics_columns(names: Iterable[str]) -> list[str]:
    """Columns of metrics.csv: step, epoch, time, then the logged names in order.

    >>> metrics_columns(["val/loss", "train/loss"])
    ['step', 'epoch', 'time', 'train/loss', 'val/loss']
    """
    return [*METRICS_KEYS, *sorted(set(names) - set(METRICS_KEYS))]
