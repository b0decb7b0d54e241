"""Convolutions over time, and the maximum over the valid steps."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from mmrun.batch import Tokens
from mmrun.encoders import Encoder
from mmrun.encoders._steps import Steps, at_least, odd, probability
from mmrun.spec import Kind, ModalitySpec


class Conv(Encoder):
    """(1-D convolution, ReLU) per layer: steps are tokens; their maximum over time is the pooled vector.

    A spectrogram's frequencies are channels. A waveform is cut into patches, so the first layer is
    a convolution with stride ``patch``.

    Source: Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014 (maximum
    over time); here the layers are stacked instead of set side by side.

    Args:
        spec: the modality.
        dim: width D of every layer.
        embedding_dim: width of a text id's embedding.
        kernel: steps that a convolution sees, odd.
        layers: number of convolutions.
        patch: samples of a waveform per step.
        dropout: probability that an element of the pooled vector is zero in training.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("text", "sequence", "spectrogram", "waveform")

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        embedding_dim: int = 16,
        kernel: int = 5,
        layers: int = 2,
        patch: int = 64,
        dropout: float = 0.4,
    ) -> None:
        super().__init__(spec)
        at_least(1, dim=dim, layers=layers)
        odd(kernel=kernel)
        probability(dropout=dropout)
        self.steps = Steps(spec, embedding_dim=embedding_dim, patch=patch)
        self.layers = nn.ModuleList(
            nn.Conv1d(self.steps.features if k == 0 else dim, dim, kernel, padding=kernel // 2)
            for k in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.dim = dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens are the last layer's steps [B, T, D]."""
        steps, valid = self.steps(x, mask)
        h = steps.transpose(1, 2)  # [B, F, T]
        weight = valid.unsqueeze(1).to(h.dtype)  # [B, 1, T]
        for layer in self.layers:
            h = F.relu(layer(h))
            if mask is not None:
                # Past its end a sample is zero for the next layer, however long its padding.
                h = h * weight
        # Nothing is below zero, so padding never is the maximum, and no valid step gives zeros.
        return Tokens(h.transpose(1, 2), valid, self.dropout(h.amax(dim=2)))
