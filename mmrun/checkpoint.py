"""Reading a checkpoint: weights only, never code, and never another model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrun.errors import UserError


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        UserError: the file is not there or is no checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # unpickling what is no checkpoint may raise anything
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise UserError("this is no checkpoint", given=path, remedy=reason) from error
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
