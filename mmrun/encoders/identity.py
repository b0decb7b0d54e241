"""No encoder: the vector is its own feature."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mmrun.batch import Tokens
from mmrun.encoders import Encoder
from mmrun.encoders._steps import all_valid
from mmrun.spec import Kind, ModalitySpec


class Identity(Encoder):
    """x [B, F] -> x: no parameters, D = F, one token."""

    kinds: ClassVar[tuple[Kind, ...]] = ("vector",)

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__(spec)
        self.dim = spec.shape[0]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:  # noqa: ARG002 - contract
        """The one token and the pooled vector are x [B, F] itself."""
        return Tokens(x.unsqueeze(1), all_valid(x, 1), x)
