"""AutoClip: each unit is clipped to a percentile of its own recent norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.adaptive import Adaptive
from mmrun.clip.law import MOST_WINDOW, count
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field
from mmrun.errors import UserError


class AutoClip(Adaptive):
    """g_u -> g_u min(1, c_u / n_u), c_u the q-th percentile of the unit's norms so far, this one included.

    At q = 10 nine steps of ten are clipped: nearly a normalisation.
    Source: Seetharaman et al. 2020, arXiv 2007.14469, Algorithm 1. Deviations: its code keeps all norms of a training
    (as its TensorFlow port, this keeps the last ``window``), and a single NaN ends its clipping.

    Args:
        threshold: q, a percentile in (0, 100] (linear between norms, as NumPy's); infinity is "off".
        per: the unit: global, modality or tensor, as in ``Scaling``.
        p: order of the norm.
        window: steps that are remembered, >= 1.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "autoclip"
    granularities: ClassVar[tuple[Per, ...]] = ("global", "modality", "tensor")

    def __init__(
        self, threshold: float, *, per: Per = "global", p: float = 2.0, window: int = 1000
    ) -> None:
        super().__init__(threshold, per=per, p=p)
        if 100 < self.threshold < math.inf:
            raise UserError(
                "clip.threshold is a percentile of the norms so far",
                given=threshold,
                remedy="Give a number above 0, up to 100; or .inf for no bound.",
            )
        self.window = count("window", window, least=1, most=MOST_WINDOW)

    def fields(self) -> dict[str, Field]:
        """The last norms in a ring, infinity where there is none yet, and how many there have been."""
        return {"ring": Field(math.inf, (self.window,)), "seen": Field()}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The percentile: the window sorted, its empty places last; 10 us for 1000 norms on a CPU."""
        seen, place = state["seen"], (state["seen"] % self.window).long()
        new = torch.where(norms > 0, norms, math.inf)
        ring = state["ring"].scatter(-1, place[:, None], new[:, None])  # [U, window]
        ordered = ring.sort(-1).values
        last = (seen + (norms > 0)).clamp(max=self.window) - 1  # [U]
        at = last * (min(self.current, 100.0) / 100.0)
        low = at.long()
        pair = torch.stack((low, torch.minimum(low + 1, last.long())), -1).clamp_(min=0)
        below, above = ordered.gather(-1, pair).unbind(-1)
        # Infinity where there is no norm at all: inf - inf would be NaN.
        limits = torch.where(last >= 0, below + (above - below) * (at - low), math.inf)
        return limits, {"ring": ring, "seen": seen + 1}
