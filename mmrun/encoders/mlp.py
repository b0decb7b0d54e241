"""A multilayer perceptron over the flattened sample."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import ClassVar

from torch import Tensor, nn

from mmrun.batch import Tokens
from mmrun.encoders import Encoder
from mmrun.encoders._steps import all_valid, at_least
from mmrun.errors import UserError
from mmrun.spec import Kind, ModalitySpec


class MLP(Encoder):
    """flatten(x) -> (linear, ReLU) per hidden width -> linear: one token [B, 1, D].

    Args:
        spec: the modality; a padded one has no fixed width and is refused.
        dim: width D of the feature.
        hidden: widths of the hidden layers; none makes the encoder linear.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("vector", "image", "spectrogram", "waveform", "sequence")

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        hidden: list[int] = [64],  # noqa: B006 - read only
    ) -> None:
        super().__init__(spec)
        at_least(1, dim=dim)
        for width in hidden:
            at_least(1, hidden=width)
        if spec.padded:
            raise UserError(
                "the encoder mlp needs samples of one length, and this modality is padded",
                given=spec.name,
                remedy=f"Choose another, such as encoder/{spec.name}=conv or gru.",
            )
        widths = [prod(spec.shape), *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], dim))
        self.dim = dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:  # noqa: ARG002 - contract
        """One token, which is the pooled vector."""
        pooled = self.layers(x)
        return Tokens(pooled.unsqueeze(1), all_valid(x, 1), pooled)
