"""Train points in this process or another, and read what they left."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrun import compose
from mmrun.train import train

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PACKAGE = ROOT / "mmrun"

# Three modalities of vectors, 240 training samples: 4 batches of 64 an epoch; the plain cross-entropy.
SMALL = (
    "dataset=synthetic",
    "dataset.samples=400",
    "logger=none",
    "objective.label_smoothing=0",
)


def fit(*overrides: str, **keywords: Any) -> dict[str, Any]:
    """Compose and train here; the record, with its ``directory`` as a Path."""
    record = train(compose.point(overrides), **keywords)
    return {**record, "directory": Path(record["directory"])}


def mmrun(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    return run_python("-m", "mmrun", *words, **environment)


def run_python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """An interpreter that finds this checkout."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=environment_with(environment),
        timeout=300,
        check=False,
    )


def start(
    *words: str, python: Sequence[str] = ("-m", "mmrun"), **environment: str
) -> subprocess.Popen[bytes]:
    """The command line, left running; ``python`` may be a program that wraps it."""
    return subprocess.Popen(
        [sys.executable, *python, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment_with(environment),
    )


def environment_with(more: Mapping[str, str]) -> dict[str, str]:
    """This process's, without the W&B service that a run of this process has started."""
    return {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"} | dict(more)


def the_run(outputs: Path | str = "outputs") -> Path:
    """The only run directory below ``outputs``."""
    (found,) = Path(outputs).iterdir()
    return found


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text, without the one column that may differ between equal runs."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("time", None)
    return rows


def cpu_seconds(call: Callable[[], Any], *, tries: int = 3) -> float:
    """The least that a call costs this process; a busy machine changes it little."""
    costs: list[float] = []
    for _ in range(tries):
        begin = time.process_time()
        call()
        costs.append(time.process_time() - begin)
    return min(costs)


def column(path: Path, name: str) -> np.ndarray:
    """A column's values; empty cells left out."""
    return np.array([float(row[name]) for row in table(path) if row[name]])


def saved(directory: Path, which: str = "last") -> dict[str, Any]:
    """The content of a checkpoint."""
    return torch.load(directory / "checkpoints" / f"{which}.ckpt", weights_only=True)


def record_of(directory: Path) -> dict[str, Any]:
    """run.json as it stands."""
    return json.loads((directory / "run.json").read_text())


def same(a: Any, b: Any) -> bool:
    """Bit for bit: nested containers, tensors and numbers (NaN is NaN)."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)


def write_arrays(
    root: Path,
    modalities: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    n_train: int = 30,
    n_test: int = 9,
    classes: int = 3,
) -> None:
    """Own data as ``dataset=arrays`` reads it: {name: (kind, shape of one sample)}, text as ids."""
    rng = np.random.default_rng(0)
    for split, n in (("train", n_train), ("test", n_test)):
        for name, (kind, shape) in modalities.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            values = rng.standard_normal((n, *shape)).astype(np.float32)
            if kind == "text":
                values = rng.integers(1, 20, (n, *shape))
            np.save(root / name / f"{split}_data.npy", values)
        np.save(root / f"{split}_labels.npy", np.arange(n) % classes)
