"""Missing modalities: which samples lack one, and what fills the gap. One file each. Contract.

The rates exist under every option: ``train_rate`` and ``test_rate`` (validation uses the test rate) are the
probability that a modality of a sample is taken away, at random and independently; a sample always keeps one.
``thin`` does it: afresh at each training step, fixed by seed and sample for evaluation. Then the fill acts:
``fill_inputs(inputs, present) -> (inputs, present)`` before the encoders, ``fill_tokens(tokens,
present) -> (tokens, present)`` after them; a filled modality counts as present. ``losses()`` are
those of a fill that learns. The base class fills nothing.

To add one: ``mmrun/missing/x.py`` with a class ``X(Missing)`` and ``conf/missing/x.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmrun.batch import Tokens
from mmrun.errors import UserError

Present = dict[str, Tensor]


class Missing(nn.Module):
    """Takes modalities away at a rate; by itself fills nothing.

    Args:
        train_rate: probability in [0, 1) that a training sample lacks a modality.
        test_rate: the same for validation and test samples.
    """

    def __init__(self, *, train_rate: float = 0.0, test_rate: float = 0.0) -> None:
        super().__init__()
        for name, rate in (("train_rate", train_rate), ("test_rate", test_rate)):
            if not 0 <= rate < 1:
                raise UserError(
                    f"missing.{name} is a probability", given=rate, remedy="Give 0 <= rate < 1."
                )
        self.train_rate = float(train_rate)
        self.test_rate = float(test_rate)

    def thin(self, present: Mapping[str, Tensor], index: Tensor, seed: int) -> Present:
        """``present`` {modality: Bool [B]} with some taken away; every sample keeps one.

        Training draws from the global generator; evaluation from (seed, index) alone, so that a sample misses the
        same modalities at every evaluation. index: int64 [B].
        """
        rate = self.train_rate if self.training else self.test_rate
        if rate == 0.0:
            return dict(present)
        names = sorted(present)
        here = torch.stack([present[name] for name in names], dim=1)  # [B, M]
        if self.training:
            draw = torch.rand(here.shape, device=here.device)
        else:
            draw = _hashed_uniform(index, len(names), seed)
        kept = here & (draw >= rate)
        # A sample that would lose all keeps the modality with the highest draw among those it has.
        best = torch.where(here, draw, -1.0).argmax(dim=1, keepdim=True)
        lone = torch.zeros_like(here).scatter_(1, best, True) & here
        kept = torch.where(kept.any(dim=1, keepdim=True), kept, lone)
        return {name: kept[:, k] for k, name in enumerate(names)}

    def fill_inputs(
        self, inputs: dict[str, Tensor], present: Present
    ) -> tuple[dict[str, Tensor], Present]:
        """Fill absent inputs {modality: [B, ...]}, before the encoders."""
        return inputs, present

    def fill_tokens(
        self, tokens: dict[str, Tokens], present: Present
    ) -> tuple[dict[str, Tokens], Present]:
        """Fill absent tokens {modality: Tokens}, after the encoders."""
        return tokens, present

    def losses(self) -> dict[str, Tensor]:
        """Losses {name: scalar} of a fill that learns."""
        return {}


def _hashed_uniform(index: Tensor, columns: int, seed: int) -> Tensor:
    """Uniform numbers [B, columns] that depend on (seed, index, column) alone, on any device.

    A 32-bit integer hash (two rounds of multiply and xor-shift, constants of Wellons' lowbias32).
    """
    low = 0xFFFFFFFF
    column = torch.arange(columns, device=index.device)
    x = (
        index.unsqueeze(1) * 0x9E3779B1
        + column * 0x85EBCA77
        + (seed & low) * 0xC2B2AE3D % (low + 1)
        + 1
    ) & low
    for multiplier in (0x21F0AAAD, 0x735A2D97):
        x = ((x ^ (x >> 16)) * multiplier) & low
    x = x ^ (x >> 15)
    return x.to(torch.float64) / 2**32
