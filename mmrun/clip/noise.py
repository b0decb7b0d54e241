"""Gradient noise: normal noise whose variance falls from step to step is added to the gradient."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.elements import at_least_float32, learns, refuse_sparse
from mmrun.clip.law import Law
from mmrun.clip.layout import Scopes
from mmrun.clip.shards import part
from mmrun.clip.step import Gradients, InForce
from mmrun.errors import UserError


class Noise(Law):
    """g -> g + N(0, eta / (1 + t)^decay) for each element, t being the steps with a gradient before this one.

    The numbers follow from seed, t and a parameter's name alone: they are the same on every rank and after a restart,
    whatever other parameters there are; and do not touch torch's own. t is time, nothing that is learnt from a gradient:
    it goes on at a step that is not finite. A parameter whose gradient is all zeros or not finite gets no noise. It
    bounds nothing, and lengthens most gradients. Source: Neelakantan et al. 2015, arXiv 1511.06807.

    Args:
        threshold: eta, the variance at the first step; infinity is "off", no noise.
        decay: how fast the variance falls, 0 or more.
        seed: of the noise.

    Raises:
        UserError: a number out of range, or a sparse gradient.
    """

    algorithm: ClassVar[str] = "noise"

    def __init__(self, threshold: float, *, decay: float = 0.55, seed: int = 0) -> None:
        super().__init__(threshold)
        if isinstance(decay, bool) or not 0 <= float(decay) < math.inf:
            raise UserError(
                "clip.decay must be 0 or more, and finite", given=decay, remedy="Give e.g. 0.55."
            )
        self.decay = float(decay)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UserError("clip.seed is a whole number", given=seed, remedy="Give e.g. 0.")
        self.seed = seed
        self.steps = 0

    def bind(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        """Bind to {scope: {parameter name: Parameter}}; t starts anew."""
        super().bind(scopes, anatomy)
        self.steps = 0

    def clip(self, gradients: Gradients) -> InForce:
        """Nothing is bounded. During a warm-up there is no noise."""
        plan = gradients.plan
        refuse_sparse(gradients, self.algorithm)
        step, self.steps = self.steps, self.steps + bool(plan.present)
        if self.current < math.inf:
            deviation = math.sqrt(self.current / (1.0 + step) ** self.decay)
            ok = gradients.each(learns(gradients.norms()))
            for i, g, noisy in zip(plan.present, gradients.open(), ok, strict=True):
                name = f"{plan.layout.names[i]} {part(plan.layout.parameters[i])}"
                noise = self._normal(g, f"{self.seed} {step} {name}")
                g.copy_(torch.where(noisy, g + deviation * noise, g))
        return InForce(plan.filled(math.inf, 1 + len(plan.scopes)), plan.no_payer)

    def _normal(self, like: torch.Tensor, key: str) -> torch.Tensor:
        """Standard normal numbers that follow from a key, in the shape of a gradient."""
        generator = torch.Generator(like.device)
        # Not hash(), which differs from process to process. 63 bits: a seed is a signed number.
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest) >> 1)
        dtype = at_least_float32(like.dtype)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=dtype)

    def state_dict(self) -> dict[str, Any]:
        """t; {} before the first step."""
        return {"steps": self.steps} if self.steps else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; after ``bind``.

        Raises:
            UserError: the state is another law's.
        """
        if state and set(state) != {"steps"}:
            raise UserError(
                "this state is of another clip law",
                given=", ".join(sorted(map(str, state))),
                remedy="This one keeps steps.",
            )
        self.steps = int(state.get("steps", 0))
