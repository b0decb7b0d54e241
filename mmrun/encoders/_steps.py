"""Any kind of modality as steps [B, T, F], and what encoders of sequences share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrun.batch import Tokens
from mmrun.encoders import Encoder
from mmrun.errors import UserError
from mmrun.spec import Kind, ModalitySpec

STEP_KINDS: tuple[Kind, ...] = ("text", "sequence", "spectrogram", "waveform", "image")


def at_least(minimum: int, **knobs: int) -> None:
    """Raise ``UserError`` for the first knob {name: value} below ``minimum``."""
    for name, value in knobs.items():
        if value < minimum:
            raise UserError(
                f"the encoder's {name} is too small",
                given=value,
                remedy=f"Give a whole number of at least {minimum}.",
            )


def probability(**knobs: float) -> None:
    """Raise ``UserError`` for the first knob {name: value} outside [0, 1)."""
    for name, value in knobs.items():
        if not 0 <= value < 1:
            raise UserError(
                f"the encoder's {name} is a probability",
                given=value,
                remedy=f"Give 0 <= {name} < 1.",
            )


def odd(**knobs: int) -> None:
    """Raise ``UserError`` for the first knob {name: value} that is not a positive odd number."""
    for name, value in knobs.items():
        if value < 1 or value % 2 == 0:
            raise UserError(
                f"the encoder's {name} has no centre",
                given=value,
                remedy="Give a positive odd number.",
            )


def all_valid(like: Tensor, length: int) -> Tensor:
    """A mask Bool [B, length] without padding, on the device of ``like`` [B, ...]."""
    return torch.ones(len(like), length, dtype=torch.bool, device=like.device)


def last_valid(values: Tensor, mask: Tensor) -> Tensor:
    """The value [B, D] at the last valid step of values [B, T, D]; zeros where no step is valid."""
    count = torch.arange(1, values.shape[1] + 1, device=values.device)
    last = (mask * count).amax(dim=1)  # [B], 1-based; 0 where none is valid
    at = (last - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, values.shape[2])
    return torch.where(last.unsqueeze(1) > 0, values.gather(1, at).squeeze(1), 0.0)


def mean_valid(values: Tensor, mask: Tensor) -> Tensor:
    """The mean [B, D] over the valid steps of values [B, T, D]; zeros where no step is valid."""
    kept = torch.where(mask.unsqueeze(-1), values, 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


class Steps(nn.Module):
    """x -> (steps [B, T, F], mask Bool [B, T]): ids embedded, frames, rows or patches as steps.

    Text ids become embeddings, a spectrogram [F, T] its T frames, an image [C, H, W] its H rows,
    a waveform [T] its patches; invalid steps are zero.

    Args:
        spec: the modality.
        embedding_dim: width of a text id's embedding.
        patch: samples of a waveform per step; the last patch is filled up with zeros.
    """

    def __init__(self, spec: ModalitySpec, *, embedding_dim: int, patch: int) -> None:
        super().__init__()
        at_least(1, embedding_dim=embedding_dim, patch=patch)
        self.kind = spec.kind
        self.patch = patch
        shape = spec.shape
        if spec.kind == "text":
            self.embedding = nn.Embedding(spec.vocabulary, embedding_dim, padding_idx=0)
            self.length, self.features = shape[0], embedding_dim
        elif spec.kind == "spectrogram":
            self.length, self.features = shape[1], shape[0]
        elif spec.kind == "image":
            self.length, self.features = shape[1], shape[0] * shape[2]
        elif spec.kind == "waveform":
            self.length, self.features = -(-shape[0] // patch), patch
        else:
            self.length, self.features = shape[0], shape[1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn x [B, ...] into steps; mask Bool [B, T] in the modality's own time."""
        if self.kind == "waveform":
            return self._patches(x, mask)
        if self.kind == "text":
            steps = self.embedding(x)
        elif self.kind == "spectrogram":
            steps = x.transpose(1, 2)
        elif self.kind == "image":
            steps = x.transpose(1, 2).flatten(2)  # [B, H, C * W]
        else:
            steps = x
        if mask is None:
            return steps, all_valid(steps, steps.shape[1])
        return torch.where(mask.unsqueeze(-1), steps, 0.0), mask

    def _patches(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """A waveform [B, T] in patches [B, ceil(T / P), P]; valid when any sample in it is."""
        if mask is not None:
            x = torch.where(mask, x, 0.0)
        lack = -x.shape[1] % self.patch
        steps = F.pad(x, (0, lack)).unflatten(1, (-1, self.patch))
        if mask is None:
            return steps, all_valid(steps, steps.shape[1])
        return steps, F.pad(mask, (0, lack)).unflatten(1, (-1, self.patch)).any(dim=2)


class Recurrent(Encoder):
    """Steps through a recurrent network; its state at the last valid step is the pooled vector.

    Reading after right padding instead kills the branch: on digits3 a tanh LSTM's share of the
    squared gradient norm was 0.00.

    Args:
        spec: the modality.
        dim: width D of the state.
        embedding_dim: width of a text id's embedding.
        patch: samples of a waveform per step.
    """

    kinds: ClassVar[tuple[Kind, ...]] = STEP_KINDS

    def __init__(self, spec: ModalitySpec, *, dim: int, embedding_dim: int, patch: int) -> None:
        super().__init__(spec)
        at_least(1, dim=dim)
        self.steps = Steps(spec, embedding_dim=embedding_dim, patch=patch)
        self.dim = dim

    @abstractmethod
    def states(self, steps: Tensor) -> Tensor:
        """The states [B, T, D] after each of the steps [B, T, F]."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens are the states; pooled is the one at the last valid step."""
        steps, valid = self.steps(x, mask)
        states = self.states(steps)
        pooled = last_valid(states, valid)
        return Tokens(torch.where(valid.unsqueeze(-1), states, 0.0), valid, pooled)
