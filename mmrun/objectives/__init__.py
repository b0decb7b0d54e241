"""Objectives: the scalar minimised, its head, its metrics. One file each. Contract, and how to add one.

``Objective(spec: DatasetSpec, dims: {modality: width}, fused_dim, **knobs)`` has

- ``targets``: the kinds of target it can learn ("class", "value", "none"); ``needs_fusion``;
- ``forward(tokens, fused, batch) -> prediction`` (its head), ``head_parameters()``;
- ``losses(batch, output) -> {name: scalar}``; the module minimises their sum;
- ``metrics(prediction, target) -> {name: scalar}`` over ALL samples of a split at once, named as in
  torchmetrics; ``primary``: the metric people read first; ``higher_is_better``: {metric: bool};
  ``ranges``: {metric: (lowest, highest) that it can be}, where there are bounds;
- ``chance(target) -> (value, margin)``: the primary metric of a constant guess on these targets, and how far from it a
  model may be and still count as guessing;
- ``monitor``: what the best checkpoint minimises or maximises on validation ("loss" by default:
  on small sets accuracy ties); ``sums``: whether the loss is a sum over the batch (under DDP the
  mean over ranks is then multiplied by their number);
- ``scores(prediction)``: what predictions.npz keeps per sample (probabilities, values).

To add one: ``mmrun/objectives/x.py`` with a class ``X(Objective)`` and ``conf/objective/x.yaml``.
The tests find it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn

from mmrun.batch import Batch, Output, Tokens
from mmrun.spec import DatasetSpec


class Objective(nn.Module, ABC):
    """What is minimised, measured and predicted."""

    targets: ClassVar[tuple[str, ...]]
    needs_fusion: ClassVar[bool] = True
    primary: str
    higher_is_better: Mapping[str, bool]
    ranges: Mapping[str, tuple[float, float]]
    monitor: str = "loss"
    sums: bool = False

    def __init__(self, spec: DatasetSpec, dims: Mapping[str, int], fused_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.dims = dict(dims)
        self.fused_dim = fused_dim

    @abstractmethod
    def forward(self, tokens: Mapping[str, Tokens], fused: Tensor | None, batch: Batch) -> Tensor:
        """The prediction [B, ...] from tokens and the fused feature [B, D]."""

    @abstractmethod
    def losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """{name: scalar}; their sum is minimised."""

    @abstractmethod
    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """{name: scalar} over all samples of a split."""

    @abstractmethod
    def chance(self, target: Tensor) -> tuple[float, float]:
        """The primary metric of a constant guess, and the margin within which one is guessing."""

    @abstractmethod
    def scores(self, prediction: Tensor) -> Tensor:
        """What is kept of a prediction per sample, [B, ...]."""

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the head; scope ``objective``."""
        return self.parameters()
