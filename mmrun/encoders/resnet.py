"""A small residual network with group normalisation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrun.batch import Tokens
from mmrun.encoders import Encoder
from mmrun.encoders._steps import all_valid, at_least, mean_valid
from mmrun.errors import UserError
from mmrun.spec import Kind, ModalitySpec


class ResNet(Encoder):
    """Stages of residual blocks, each after the first at half the size: positions are tokens, their mean is pooled.

    Source: He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv 1512.03385), with
    Wu and He, Group Normalization, 2018 (arXiv 1803.08494), in place of batch normalisation, so
    that a sample's features do not depend on its batch.

    Args:
        spec: the modality; a spectrogram [F, T] is an image of one channel.
        dim: width D of the last stage.
        channels: width of the stages before the last.
        stages: number of stages; the size halves between them.
        blocks: residual blocks per stage.
        groups: groups of the normalisation; divides ``dim`` and ``channels``.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("image", "spectrogram")

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        channels: int = 16,
        stages: int = 2,
        blocks: int = 1,
        groups: int = 4,
    ) -> None:
        super().__init__(spec)
        at_least(1, dim=dim, channels=channels, stages=stages, blocks=blocks, groups=groups)
        if dim % groups or channels % groups:
            raise UserError(
                "the encoder's groups must divide its dim and channels",
                given=f"groups={groups}, dim={dim}, channels={channels}",
                remedy="Change one of them.",
            )
        width = dim if stages == 1 else channels
        self.stem = nn.Conv2d(spec.shape[0] if spec.kind == "image" else 1, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        for stage in range(stages):
            after = dim if stage == stages - 1 else channels
            for k in range(blocks):
                stride = 2 if stage > 0 and k == 0 else 1
                self.blocks.append(Block(width, after, stride=stride, groups=groups))
                width = after
        self.norm = MaskedGroupNorm(groups, dim)
        self.dim = dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encode x, image [B, C, H, W] or spectrogram [B, F, T] with mask [B, T]; tokens by row, then column."""
        x = _keep(x if x.dim() == 4 else x.unsqueeze(1), mask)
        x = _keep(self.stem(x), mask)
        for block in self.blocks:
            x, mask = block(x, mask)
        x = F.relu(self.norm(x, mask))
        values = x.flatten(2).transpose(1, 2)  # [B, H' * W', D]
        if mask is None:
            return Tokens(values, all_valid(x, values.shape[1]), values.mean(dim=1))
        valid = mask.repeat(1, x.shape[2])
        return Tokens(_keep(x, mask).flatten(2).transpose(1, 2), valid, mean_valid(values, valid))


class Block(nn.Module):
    """x -> shortcut(x) + conv(relu(norm(conv(relu(norm(x)))))), for x [B, C, H, W]."""

    def __init__(self, before: int, after: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm1 = MaskedGroupNorm(groups, before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.norm2 = MaskedGroupNorm(groups, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The block's output and its mask; a strided output is valid where its centre is."""
        h = self.conv1(_keep(F.relu(self.norm1(x, mask)), mask))
        after = mask if mask is None else mask[:, :: self.stride]
        h = self.conv2(_keep(F.relu(self.norm2(h, after)), after))
        return _keep(self.shortcut(x) + h, after), after


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation of x [B, C, H, W] whose statistics are those of the valid columns."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise; mask is Bool [B, W], or None when every column is valid."""
        if mask is None:
            return super().forward(input)
        x = input.unflatten(1, (self.num_groups, -1))  # [B, G, C / G, H, W]
        valid = mask[:, None, None, None]
        n = (mask.sum(dim=1) * x.shape[2] * x.shape[3]).clamp(min=1).view(-1, 1, 1, 1, 1)
        centred = x - torch.where(valid, x, 0.0).sum(dim=(2, 3, 4), keepdim=True) / n
        variance = torch.where(valid, centred, 0.0).square().sum(dim=(2, 3, 4), keepdim=True) / n
        x = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def _keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return x [B, C, H, W] with zeros in the invalid columns of mask Bool [B, W]."""
    return x if mask is None else torch.where(mask[:, None, None], x, 0.0)
