"""Losses whose gradients are known, and batches for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmrun.batch import Batch
from mmrun.diagnostics import Aside


class Linear(nn.Module):
    """One weight; with ``loss`` its gradient at a sample is the sample itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, dtype=torch.float64))

    def loss(self, batch: Batch) -> Tensor:
        return (batch.inputs["x"] @ self.weight).mean()


def batch_of(x: Tensor) -> Batch:
    index = torch.arange(len(x))
    return Batch({"x": x}, {"x": index >= 0}, {}, torch.zeros(len(x), 0), index)


def aside_of(module: nn.Module, loss: Callable[[Batch], Tensor], *, sums: bool = False) -> Aside:
    return Aside(loss, module, sums=sums)
