"""mmrun: an experiment runner for multimodal deep learning in which gradient clipping is a controlled variable.

Data flows one way: command line -> ``compose`` -> ``Point`` -> ``build`` -> run directory -> ``train`` -> record. Floors, high to low;
imports point down, or stay inside a package:

    cli | verbs | launch, compare, doctor, completion, wandb_sync | compose, point | train, ranks, torchrun
    | evaluate, closing, resuming, calibration | build | trainer, module, callbacks, isolation
    | model, gradients, loader | watching | bounds
    | encoders, fusion, objectives, clip, balance, missing, diagnostics, datasets | batch, tracking, schedules, checkpoint, signature, sources
    | runs, settings, trust | spec, errors, options, shells, user_code, exits, signals, logfile, lasting

``mmrun.load(RUN)`` gives a trained model; ``mmrun.clip`` works in any PyTorch loop.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrun.module import MultimodalModule

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """``mmrun.clip``, imported when it is first named."""
    if name != "clip":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def load(
    run: str | Path, *, outputs: str | Path | None = None, trust: Collection[str] = ()
) -> MultimodalModule:
    """The trained model of a run, with its best weights, in evaluation mode.

    Args:
        run: a path, a name or unique id prefix below ``outputs``, or ``last``.
        outputs: the root of all runs; by default MMRUN_OUTPUTS, else ``outputs``.
        trust: packages beside mmrun and torch.optim that the run's config may name.

    Raises:
        UserError: no such run, or one without a checkpoint.
    """
    from mmrun import runs
    from mmrun.evaluate import restore

    root = runs.outputs() if outputs is None else Path(outputs)
    return restore(runs.find(str(run), root), trust=trust).module
