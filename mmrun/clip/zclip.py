"""ZClip: a norm that is an outlier among its predecessors is clipped, by its z-score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from mmrun.clip.adaptive import Adaptive
from mmrun.clip.law import count, decay, nonnegative
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field
from mmrun.errors import UserError, nearest

Response = Literal["adaptive", "mean", "percentile"]


class ZClip(Adaptive):
    """g_u -> g_u min(1, c_u / n_u) where z_u = (n_u - mean) / (sd + eps) is above z*; c_u is what ``response`` says.

    ``adaptive``: mean + z* sd / (z / z*), the lower the further out the norm is; ``mean``: the mean; ``percentile``: mean
    + z* sd. Then mean and variance follow as exponential averages of the clipped norm, the variance around the new
    mean. The first ``warmup_steps`` norms (population variance) start them, and are not clipped.
    Source: Kumar et al. 2025, arXiv 2504.02507, equations 4 to 8, and zclip.py. Deviations: one NaN ends its clipping; its
    ``max_grad_norm`` is a second law (``clip=chain``) here.

    Args:
        threshold: z*, in standard deviations; infinity is "off".
        per: the unit: global, modality or tensor, as in ``Scaling``.
        p: order of the norm.
        beta: weight of the past in the averages, from 0 to below 1.
        response: adaptive, mean or percentile.
        warmup_steps: norms of the unit that are only measured, >= 1.
        eps: added to the standard deviation that divides, >= 0, in units of the norm.
        sd_floor: the least standard deviation, as a share of the mean, >= 0: when norms hardly vary, any rise is an outlier.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "zclip"
    granularities: ClassVar[tuple[Per, ...]] = ("global", "modality", "tensor")

    def __init__(
        self,
        threshold: float,
        *,
        per: Per = "global",
        p: float = 2.0,
        beta: float = 0.97,
        response: Response = "adaptive",
        warmup_steps: int = 25,
        eps: float = 1e-6,
        sd_floor: float = 0.0,
    ) -> None:
        super().__init__(threshold, per=per, p=p)
        if response not in get_args(Response):
            remedy = nearest(str(response), get_args(Response))
            raise UserError("there is no such clip.response", given=response, remedy=remedy)
        self.beta = decay("beta", beta)
        self.response: Response = response
        self.warmup_steps = count("warmup_steps", warmup_steps, least=1)
        self.eps = nonnegative("eps", eps)
        self.sd_floor = nonnegative("sd_floor", sd_floor)

    def fields(self) -> dict[str, Field]:
        """Mean and variance of the norm, and how many norms there have been."""
        return {"mean": Field(), "var": Field(), "seen": Field()}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """c, or for a norm that is no outlier the least one that would be; infinity while the statistics start."""
        mean, var, seen = state["mean"], state["var"], state["seen"] + 1
        z_star, warm = self.current, state["seen"] < self.warmup_steps
        sd = torch.maximum(var.sqrt(), self.sd_floor * mean)
        z = (norms - mean) / (sd + self.eps)
        outlier = (z > z_star) & ~warm
        if self.response == "adaptive":
            bound = mean + z_star * sd / (z / z_star)
        elif self.response == "mean":
            bound = mean
        else:
            bound = mean + z_star * sd
        fed = torch.where(outlier, bound, norms)
        # The running mean and population variance of the first norms, then exponential averages.
        off = norms - mean
        warm_mean = mean + off / seen
        warm_var = var + (off * (norms - warm_mean) - var) / seen
        late_mean = self.beta * mean + (1 - self.beta) * fed
        late_var = self.beta * var + (1 - self.beta) * (fed - late_mean) ** 2
        # At least the norm itself: rounding must not touch what is no outlier.
        passing = torch.maximum(mean + z_star * (sd + self.eps), norms)
        limits = torch.where(outlier, bound, passing).masked_fill_(warm, torch.inf)
        return limits, {
            "mean": torch.where(warm, warm_mean, late_mean),
            "var": torch.where(warm, warm_var, late_var),
            "seen": seen,
        }
