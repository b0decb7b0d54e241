"""Concatenation of the pooled vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmrun.batch import Tokens
from mmrun.fusion import Fusion


class Concat(Fusion):
    """[x_1; ...; x_M] in the order of the modalities' names; D is the sum of their widths.

    No parameters. An absent modality is its zero vector.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.dim = sum(self.dims.values())

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Pooled vectors side by side, [B, D]."""
        return torch.cat([tokens[name].pooled for name in self.modalities], dim=1)
