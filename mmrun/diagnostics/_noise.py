"""How much of a gradient is noise? The gradient noise scale, from the gradients of a batch's parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mmrun.batch import Batch
from mmrun.diagnostics._aside import Aside, square

LEAST = 2  # samples in a part: some losses and layers need more than one


def variance_and_square(
    aside: Aside, batch: Batch, parameters: Sequence[nn.Parameter], parts: int
) -> tuple[Tensor, Tensor]:
    """Unbiased (tr S, |G|^2): G the mean over samples of the gradient of a sample's loss, S its covariance.

    A part of b_i of the B samples has the gradient g_i, all of them together g = sum b_i g_i / B. Since E|g_i|^2 = |G|^2 + tr S / b_i
    for independent samples, tr S ~ (sum b_i |g_i|^2 - B |g|^2) / (k - 1) and |G|^2 ~ |g|^2 - tr S / B. For equal parts that is
    (|g_small|^2 - |g_big|^2) / (1/B_small - 1/B_big) and (B_big |g_big|^2 - B_small |g_small|^2) / (B_big - B_small).
    NaN where the batch is too small to be parted. Class weights make a batch's loss a ratio of two sums, and
    contrastive losses tie its samples together: it is approximate then.

    Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162), appendix A.1.
    """
    samples = len(batch.index)
    parts = min(parts, samples // LEAST)
    if parts < 2:
        nan = torch.tensor(math.nan, dtype=torch.float64, device=batch.index.device)
        return nan, nan
    total = [torch.zeros_like(parameter) for parameter in parameters]
    weighted: list[Tensor] = []
    bounds = [samples * k // parts for k in range(parts + 1)]
    for first, last in pairwise(bounds):
        size = last - first
        gradient = aside.gradient(batch.take(slice(first, last)), parameters)
        # A sum over the batch is as long as its mean times the number of samples.
        mean = [each / size for each in gradient] if aside.sums else gradient
        weighted.append(size * square(mean))
        for so_far, each in zip(total, mean, strict=True):
            so_far.add_(each, alpha=size / samples)
    whole = square(total)
    variance = (torch.stack(weighted).sum() - samples * whole) / (parts - 1)
    return variance, whole - variance / samples


class NoiseScale:
    """B_simple = tr S / |G|^2, in samples: running means of both, then their ratio.

    A single measurement of either is unbiased and very noisy; the ratio of two is neither unbiased nor bounded,
    which is why the paper averages both before dividing. NaN while the mean of |G|^2 is not above 0.

    Args:
        decay: of the running means; the share that a new measurement does not take.

    Source: McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.variance = 0.0
        self.square = 0.0

    def update(self, variance: float, square: float) -> float:
        """Take up a measurement; the noise scale now. Both means begin at 0, which their ratio does not see."""
        if math.isfinite(variance) and math.isfinite(square):
            self.variance = self.decay * self.variance + (1 - self.decay) * variance
            self.square = self.decay * self.square + (1 - self.decay) * square
        return self.variance / self.square if self.square > 0 else math.nan

    def state_dict(self) -> dict[str, Any]:
        """The two means."""
        return {"variance": self.variance, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.variance, self.square = float(state["variance"]), float(state["square"])
