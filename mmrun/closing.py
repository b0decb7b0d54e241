"""What a training came to: its scores at the best and the last weights, and whether it stayed stable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmrun.build import Built
from mmrun.callbacks.recorder import Array
from mmrun.checkpoint import read_checkpoint
from mmrun.datasets import SplitName
from mmrun.module import MultimodalModule, Scores
from mmrun.runs.layout import Paths
from mmrun.runs.stability import Stability, stability
from mmrun.trainer import limited


def score_checkpoints(
    built: Built, paths: Paths, device: torch.device
) -> tuple[Scores, Scores, Scores]:
    """(test at the last weights, test at the best, training set at the best); writes predictions.npz.

    The test split is read here and nowhere else. On return the module holds the best weights; where no validation was
    finite there are none, and the last ones count as best.
    """
    module = built.module

    def score(split: SplitName) -> Scores:
        batches = built.loader(split, device=device)
        return module.score(batches, limited(built.options.limit_test_batches, len(batches)))

    last = best = score("test")
    if paths.best.exists():
        module.load_state_dict(read_checkpoint(paths.best, device)["state_dict"])
        best = score("test")
    _write_predictions(built, best, last, paths.predictions)
    return last, best, score("train")


def judge(module: MultimodalModule, losses: Array, diverged_at: int | None) -> Stability:
    """How stable a training was, by the losses of all its steps [T] and its last validation."""
    if diverged_at is not None:
        return Stability("diverged", diverged_at)
    goal, validation = module.objective, module.validation
    at_chance = False
    if validation is not None:
        chance, margin = goal.chance(validation.target)
        value = validation.metrics[goal.primary]
        higher = goal.higher_is_better[goal.primary]
        at_chance = value <= chance + margin if higher else value >= chance - margin
    finite = np.isfinite(losses)  # steps that were left out
    steps = np.arange(1, len(losses) + 1)
    return stability(losses[finite], steps[finite], at_chance=at_chance)


def _write_predictions(built: Built, best: Scores, last: Scores, path: Path) -> None:
    scores = built.module.objective.scores
    group = built.dataset.split("test").group
    temporary = path.with_name(f".{path.name}")
    np.savez_compressed(
        temporary,
        index=best.index.numpy(),
        group=group[best.index].cpu().numpy(),
        target=best.target.numpy(),
        best=scores(best.prediction).numpy(),
        last=scores(last.prediction).numpy(),
    )
    temporary.replace(path)
