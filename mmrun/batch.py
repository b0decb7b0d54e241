"""What flows through a model: a batch of inputs, an encoder's tokens, the model's output.

Shape legend, used everywhere: B batch, T time or tokens, D width, C channels or classes,
F features per step, H height, W width, M modalities, N samples of a split.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Batch:
    """A batch of samples, by modality name.

    Args:
        inputs: {modality: [B, ...]}, shapes by kind as in ``spec.ModalitySpec``; zeros where absent.
        present: {modality: Bool [B]}, False where the sample lacks the modality.
        mask: {modality: Bool [B, T]}, True on valid steps; padded modalities only.
        target: int64 [B], float32 [B, D], or an empty tensor [B, 0] where there is none.
        index: int64 [B], row in the split.
    """

    inputs: dict[str, Tensor]
    present: dict[str, Tensor]
    mask: dict[str, Tensor]
    target: Tensor
    index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device; itself when it is there already."""
        if self.index.device == torch.device(device):
            return self

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device, non_blocking=non_blocking) for k, v in tensors.items()}

        return Batch(
            moved(self.inputs),
            moved(self.present),
            moved(self.mask),
            self.target.to(device, non_blocking=non_blocking),
            self.index.to(device, non_blocking=non_blocking),
        )

    def take(self, rows: Tensor | slice) -> Batch:
        """Some of its samples: a slice, or int64 [b] in any order."""

        def taken(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v[rows] for k, v in tensors.items()}

        return Batch(
            taken(self.inputs),
            taken(self.present),
            taken(self.mask),
            self.target[rows],
            self.index[rows],
        )


@dataclass(frozen=True)
class Tokens:
    """What an encoder returns: its tokens, which of them are valid, and its own pooled vector.

    Args:
        values: [B, T, D]; T is 1 for an encoder of vectors.
        mask: Bool [B, T]; all False for a missing sample.
        pooled: [B, D]; zeros for a missing sample.
    """

    values: Tensor
    mask: Tensor
    pooled: Tensor

    def keep(self, present: Tensor) -> Tokens:
        """The same tokens with absent samples blanked: mask False, vectors zero. present: Bool [B]."""
        there = present.unsqueeze(-1)  # [B, 1]
        return Tokens(
            torch.where(there.unsqueeze(-1), self.values, 0.0),
            self.mask & there,
            torch.where(there, self.pooled, 0.0),
        )


@dataclass(frozen=True)
class Output:
    """What a model makes of a batch.

    Args:
        tokens: {modality: Tokens}, after filling.
        fused: [B, D] the fused feature, [B, M, D] of a decision-level fusion, None if not needed.
        prediction: what the objective predicts, [B, ...].
        extras: further tensors that an objective's losses need, by name.
    """

    tokens: dict[str, Tokens]
    fused: Tensor | None
    prediction: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
