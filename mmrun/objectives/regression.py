"""Which value? Squared error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmrun.batch import Batch, Output, Tokens
from mmrun.errors import UserError
from mmrun.objectives import Objective
from mmrun.spec import DatasetSpec


class Regression(Objective):
    """loss = reduce (z - y)^2 over batch and width; the prediction is z [B, D].

    With ``reduction=half_sum`` the gradient with respect to z is z - y, with nothing divided.

    Args:
        spec: the dataset.
        dims: {modality: width}; not used.
        fused_dim: width of the fused feature.
        hidden: widths of the head's hidden layers, each with ReLU; none makes the head linear.
        reduction: ``mean`` over batch and width, ``sum``, or ``half_sum`` (half the sum). It is
            part of a clip threshold's meaning.
        bias: whether the head's last layer has a bias.
        init: ``default`` (PyTorch's) or ``zero``: a linear head starts at zero.

    Raises:
        UserError: a knob is out of range, or ``init=zero`` with hidden layers, which would never
            learn.
    """

    targets: ClassVar[tuple[str, ...]] = ("value",)

    def __init__(
        self,
        spec: DatasetSpec,
        dims: Mapping[str, int],
        fused_dim: int,
        *,
        hidden: list[int] = [],  # noqa: B006 - read only
        reduction: Literal["mean", "sum", "half_sum"] = "mean",
        bias: bool = True,
        init: Literal["default", "zero"] = "default",
    ) -> None:
        super().__init__(spec, dims, fused_dim)
        if any(width < 1 for width in hidden):
            raise UserError(
                "objective.hidden lists widths",
                given=hidden,
                remedy="Give positive whole numbers, such as [64,32].",
            )
        widths = [fused_dim, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        last = nn.Linear(widths[-1], prod(spec.target_shape), bias=bias)
        self.head = nn.Sequential(*layers, last)
        if init == "zero":
            if hidden:
                raise UserError(
                    "objective.init=zero needs a linear head",
                    given=f"hidden={hidden}",
                    remedy="Leave objective.hidden empty, or use init=default.",
                )
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        self.reduction = reduction
        self.sums = reduction != "mean"
        self.primary = "mse"
        self.higher_is_better = {"mse": False, "mae": False, "r2": True}
        errors = dict.fromkeys(("mse", "mae", "loss"), (0.0, math.inf))
        self.ranges = {**errors, "r2": (-math.inf, 1.0)}

    def forward(self, tokens: Mapping[str, Tokens], fused: Tensor | None, batch: Batch) -> Tensor:  # noqa: ARG002 - contract
        """Values [B, D] from the fused feature."""
        return self.head(fused).unflatten(1, self.spec.target_shape)

    def losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """The squared error of the batch, reduced."""
        squares = (output.prediction - batch.target).square()
        if self.reduction == "mean":
            loss = squares.mean()
        elif self.reduction == "sum":
            loss = squares.sum()
        else:
            loss = 0.5 * squares.sum()
        return {"squared_error": loss}

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Mean squared and absolute error; r2, the mean over the width of 1 - error / variance.

        A width on which the targets are constant has r2 = 1 when guessed exactly, else 0.
        """
        error = (prediction - target).double()
        squares = error.square().mean(dim=0)
        variance = target.double().var(dim=0, correction=0)
        r2 = torch.where(
            variance > 0,
            1 - squares / torch.where(variance > 0, variance, 1.0),
            (squares == 0).double(),
        )
        return {
            "mse": squares.mean().float(),
            "mae": error.abs().mean().float(),
            "r2": r2.mean().float(),
        }

    def chance(self, target: Tensor) -> tuple[float, float]:
        """The error of guessing the targets' mean, that is their variance; no margin. Equal targets tell nothing."""
        variance = target.double().var(dim=0, correction=0).mean().item()
        return variance or math.inf, 0.0

    def scores(self, prediction: Tensor) -> Tensor:
        """The values [B, D]."""
        return prediction
