"""How fast does the gradient change along a step? The local smoothness against the gradient norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrun.diagnostics._aside import square


class Smoothness:
    """|g(x1) - g(x0)| / |x1 - x0| for one optimizer step x0 -> x1, and |g(x0)|; the same batch on both sides.

    For a quadratic loss with Hessian H it is |H d| / |d|, d being the step. NaN for a step that went nowhere. Zhang et al. look
    half-way along the step, and at the gradient of a tenth of the training data (their code's ``eval_smooth``): this is the end of the step,
    and a batch, so that both numbers have the batch's noise in them. Weight decay is part of the step,
    not of the gradient.

    Args:
        parameters: x.
        gradient: g(x0).

    Source: Zhang et al. 2020, "Why Gradient Clipping Accelerates Training" (arXiv 1905.11881), who plot it against the norm
    and read (L0, L1)-smoothness off the plot: |H| <= L0 + L1 |g| (Definition 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], gradient: list[Tensor]) -> None:
        self.parameters = parameters
        self.start = [parameter.detach().clone() for parameter in parameters]
        self.gradient = gradient

    @torch.no_grad()
    def along(self, gradient: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(smoothness, norm) once the weights are x1. gradient: g(x1)."""
        change = [end - start for end, start in zip(gradient, self.gradient, strict=True)]
        step = [end - start for end, start in zip(self.parameters, self.start, strict=True)]
        smoothness = (square(change) / square(step)).sqrt()
        return smoothness, square(self.gradient).sqrt()
