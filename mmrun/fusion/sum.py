"""Sum of projections to a common width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmrun.batch import Tokens
from mmrun.errors import UserError
from mmrun.fusion import Fusion


class Sum(Fusion):
    """Sum over the present modalities of W_m x_m + b_m.

    Not divided by their number: evidence adds up. An absent modality adds nothing.

    Args:
        dims: {modality: width}.
        dim: common width D.
    """

    def __init__(self, dims: Mapping[str, int], *, dim: int = 32) -> None:
        super().__init__(dims)
        if dim < 1:
            raise UserError(
                "the fusion's dim is too small", given=dim, remedy="Give a positive whole number."
            )
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, dim) for name, width in self.dims.items()}
        )
        self.dim = dim

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Projections of the pooled vectors, added up, [B, D]."""
        parts = [
            torch.where(
                tokens[name].mask.any(dim=1, keepdim=True),
                self.projections[name](tokens[name].pooled),
                0.0,
            )
            for name in self.modalities
        ]
        return torch.stack(parts).sum(dim=0)
