"""Two strided convolutions, and a linear layer over what is left."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrun.batch import Tokens
from mmrun.encoders import Encoder
from mmrun.encoders._steps import all_valid, at_least, mean_valid, odd, probability
from mmrun.spec import Kind, ModalitySpec


class CNN(Encoder):
    """(convolution with stride 2, ReLU) twice: positions are tokens; linear over their grid: pooled.

    A spectrogram [F, T] is an image of one channel, and is averaged over its valid frames before
    the linear layer: where in time something sounds does not matter, at which frequency does.

    Strides in place of max-pooling take a quarter of its time on one CPU thread (2.9 against
    11 ms for 64 spectrograms 36 x 15), at equal accuracy on digits3.

    Args:
        spec: the modality.
        dim: width D of tokens and pooled vector, and of the second convolution.
        channels: width of the first convolution.
        kernel: side of both convolutions, odd.
        grid: largest height and width of the grid of tokens (of a spectrogram: height only); a
            larger one is averaged down to it.
        dropout: probability that an element of the pooled vector is zero in training.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image", "spectrogram")

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        channels: int = 16,
        kernel: int = 3,
        grid: int = 8,
        dropout: float = 0.4,
    ) -> None:
        super().__init__(spec)
        at_least(1, dim=dim, channels=channels, grid=grid)
        odd(kernel=kernel)
        probability(dropout=dropout)
        self.timed = spec.kind == "spectrogram"
        inputs, height, width = (1, *spec.shape) if self.timed else spec.shape
        self.first = nn.Conv2d(inputs, channels, kernel, stride=2, padding=kernel // 2)
        self.second = nn.Conv2d(channels, dim, kernel, stride=2, padding=kernel // 2)
        # Each stride of 2 halves a side, rounding up.
        rows, columns = -(-height // 4), -(-width // 4)
        self.shrinks = rows > grid or (columns > grid and not self.timed)
        rows, columns = min(rows, grid), min(columns, grid)
        self.size = (rows, None if self.timed else columns)
        self.readout = nn.Sequential(
            nn.Linear(dim * rows * (1 if self.timed else columns), dim), nn.Dropout(dropout)
        )
        self.dim = dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encode an image [B, C, H, W] or spectrogram [B, F, T] with mask [B, T]; tokens by row, then column."""
        x = x.unsqueeze(1) if self.timed else x
        if mask is None:
            x = F.relu(self.second(F.relu(self.first(x))))
        else:
            # Invalid frames are zero before each layer, as if the sample ended there; a strided
            # output is valid where its centre is.
            x = torch.where(mask[:, None, None], x, 0.0)
            for layer in (self.first, self.second):
                mask = mask[:, ::2]
                x = torch.where(mask[:, None, None], F.relu(layer(x)), 0.0)
        if self.shrinks:
            x = F.adaptive_avg_pool2d(x, self.size)
        values = x.flatten(2).transpose(1, 2)  # [B, H' * W', D]
        if not self.timed:
            return Tokens(values, all_valid(x, values.shape[1]), self.readout(x.flatten(1)))
        if mask is None:
            mask = all_valid(x, x.shape[3])
        pooled = self.readout(mean_valid(x.flatten(1, 2).transpose(1, 2), mask))
        return Tokens(values, mask.repeat(1, x.shape[2]), pooled)
