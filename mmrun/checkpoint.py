"""Reading a checkpoint: weights only, never code, and never another model's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrun.errors import UserError, described, shortened

_CLAUSE = 100  # characters of what PyTorch says, which may be a page


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        UserError: the file is not there or is no checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # unpickling what is no checkpoint may raise anything
        raise UserError("this is no checkpoint", given=path, remedy=_why(error)) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError("this is no checkpoint", given=path, remedy="It holds no weights.")
    return checkpoint


def load_weights(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load a checkpoint's weights into ``module``; returns the whole checkpoint.

    Raises:
        UserError: the file is no checkpoint, or one of another model.
    """
    checkpoint = read_checkpoint(path)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            "this checkpoint is of another model", given=path, remedy=reason[:300]
        ) from error
    return checkpoint


def _why(error: Exception) -> str:
    """One short clause of what reading a file ended in."""
    if isinstance(error, OSError):
        return f"{error.strerror or described(error)}."
    if isinstance(error, pickle.UnpicklingError):  # PyTorch tells how to run the file's code
        return "It is damaged, or holds more than weights."
    said = described(error).split("\n", 1)[0].partition(". ")[0].rstrip(".")
    return f"{shortened(said, _CLAUSE)}."
