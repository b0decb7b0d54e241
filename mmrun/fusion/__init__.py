"""Fusions: features by modality -> one fused feature. One file each. Contract, and how to add one.

``Fusion(dims: {modality: width}, **knobs)`` has ``dim`` (the width of what it returns) and
``forward({modality: Tokens}) -> [B, dim]``. Any number of modalities, one included; the result does not depend on the
order of the dict (iterate ``self.modalities``, which is sorted); finite for every pattern of
missing modalities with at least one present, a batch of one included. A missing sample has an
all-False mask and a zero vector: fusions of vectors read ``pooled`` and ``mask.any(1)``, fusions of
sequences ``values`` and ``mask``. A decision-level fusion may return [B, M, dim].

To add one: ``mmrun/fusion/x.py`` with a class ``X(Fusion)`` (knobs keyword-only) and
``conf/fusion/x.yaml``. The tests find it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from mmrun.batch import Tokens


class Fusion(nn.Module, ABC):
    """Features by modality -> one fused feature."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.modalities = sorted(dims)
        self.dims = {name: dims[name] for name in self.modalities}
        self.dim = 0

    @abstractmethod
    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Fuse {modality: Tokens} into [B, dim]."""
