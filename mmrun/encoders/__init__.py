"""Encoders: one modality -> ``Tokens``. One file each. Contract, and how to add one.

``Encoder(spec: ModalitySpec, **knobs)`` has ``kinds`` (the kinds it takes), ``dim`` (the width D that it
returns) and ``forward(x, mask=None) -> Tokens(values [B, T, D], mask [B, T], pooled [B, D])``.
It derives every width from ``spec`` and owns its pooling. ``mask`` (Bool [B, T], True on valid steps) comes with
padded modalities; a row may be all False: the result is finite, and values at invalid steps do
not influence ``pooled``. Recurrent encoders read the last valid step. No BatchNorm: a sample's
features must not depend on its batch.

To add one: ``mmrun/encoders/x.py`` with a class ``X(Encoder)`` (knobs keyword-only, with defaults)
and ``conf/encoder/x.yaml`` (first comment line says what it is; ``_target_`` and the knobs). The
tests find it. ``_steps.py`` turns any kind into steps [B, T, F] for encoders of sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mmrun.batch import Tokens
from mmrun.spec import Kind, ModalitySpec


class Encoder(nn.Module, ABC):
    """One modality -> its tokens and their pooled vector."""

    kinds: ClassVar[tuple[Kind, ...]]

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__()
        self.spec = spec
        self.dim = 0

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encode x [B, *spec.shape]; mask Bool [B, T] where the modality is padded."""
