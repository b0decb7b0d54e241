"""Skipping: a step whose norm is far above its predecessors' is left out."""

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
from mmrun.clip.step import Gradients, InForce


class Skip(Adaptive):
    """g_u -> 0 where n_u > mean + k sd of the unit's last norms before this one, else g_u as it is.

    The standard deviation is the unbiased one. Every norm enters it, also one that is skipped, so that a lasting
    rise is soon normal. Source: OLMo-core, ``skip_step_optimizer.py``, without its test of the loss: there is no paper.
    Alone it makes gradients 0, and the optimizer's step is taken: momentum and weight decay move on. Within a
    ``Clipper`` that is called with a fused optimizer, ``per=global`` leaves out the step itself; with any other one,
    and with ``per=modality``, it is as alone.

    Args:
        threshold: k, in standard deviations; infinity is "off".
        per: the unit: global or modality, as in ``Scaling``.
        p: order of the norm.
        window: norms that are remembered, >= 2; nothing is skipped before half as many, nor before two.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "skip"
    granularities: ClassVar[tuple[Per, ...]] = ("global", "modality")

    def __init__(
        self, threshold: float, *, per: Per = "global", p: float = 2.0, window: int = 128
    ) -> None:
        super().__init__(threshold, per=per, p=p)
        self.window = count("window", window, least=2, most=MOST_WINDOW)

    def fields(self) -> dict[str, Field]:
        """The last norms in a ring, 0 where there is none yet, and how many there have been."""
        return {"ring": Field(0.0, (self.window,)), "seen": Field()}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bound mean + k sd of the ring as it was, infinity until it is half full; the ring with this norm in it."""
        ring, seen = state["ring"], state["seen"]
        place = (seen % self.window).long()
        new = {"ring": ring.scatter(-1, place[:, None], norms[:, None]), "seen": seen + 1}
        n = seen.clamp(2, self.window)
        mean = ring.sum(-1) / n
        off = torch.where(ring > 0, ring - mean[:, None], 0.0)
        sd = ((off * off).sum(-1) / (n - 1)).sqrt()
        acts = seen >= max(self.window // 2, 2)
        return torch.where(acts, mean + self.current * sd, math.inf), new

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """0 for a finite norm above the limit, else 1."""
        return torch.where((norms > limits) & (norms < torch.inf), 0.0, 1.0)

    def clip(self, gradients: Gradients) -> InForce:
        """As every scaling; and whether the whole step is left out."""
        if self.per != "global":
            return super().clip(gradients)
        norm = gradients.joint(self.p)[0]
        in_force = super().clip(gradients)
        return in_force._replace(skipped=self.respond(norm, in_force.threshold[0]) == 0)
