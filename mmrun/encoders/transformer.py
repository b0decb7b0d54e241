"""A pre-norm transformer over steps."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmrun.batch import Tokens
from mmrun.encoders import Encoder
from mmrun.encoders._steps import STEP_KINDS, Steps, at_least, mean_valid
from mmrun.errors import UserError
from mmrun.spec import Kind, ModalitySpec


class Transformer(Encoder):
    """x += attention(norm(x)), x += mlp(norm(x)) per layer: norm(x) are tokens, their mean is pooled.

    Source: Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762), with the norm inside
    the residual branch as in Xiong et al., 2020 (arXiv 2002.04745), and learned positions.

    Args:
        spec: the modality.
        dim: width D; a multiple of ``heads``.
        embedding_dim: width of a text id's embedding, before it is projected to D.
        layers: number of blocks.
        heads: attention heads.
        hidden: width of the blocks' two-layer perceptron.
        patch: samples of a waveform per step.
    """

    kinds: ClassVar[tuple[Kind, ...]] = STEP_KINDS

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        embedding_dim: int = 16,
        layers: int = 2,
        heads: int = 4,
        hidden: int = 64,
        patch: int = 64,
    ) -> None:
        super().__init__(spec)
        at_least(1, dim=dim, layers=layers, heads=heads, hidden=hidden)
        if dim % heads:
            raise UserError(
                "the encoder's dim must be a multiple of its heads",
                given=f"dim={dim}, heads={heads}",
                remedy="Change one of them.",
            )
        self.steps = Steps(spec, embedding_dim=embedding_dim, patch=patch)
        self.inputs = nn.Linear(self.steps.features, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(self.steps.length, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.dim = dim

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """At most as many steps as the spec's: positions are learned."""
        steps, valid = self.steps(x, mask)
        h = self.inputs(steps) + self.positions[: steps.shape[1]]
        for block in self.blocks:
            h = block(h, valid if mask is not None else None)
        h = self.norm(h)
        pooled = mean_valid(h, valid)
        return Tokens(torch.where(valid.unsqueeze(-1), h, 0.0), valid, pooled)


class Block(nn.Module):
    """x += attention(norm(x)), then x += mlp(norm(x)), for x [B, T, D]."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend among the valid steps of mask Bool [B, T]; a row without any attends to all."""
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1))  # [B, T, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5  # [B, heads, T, T]
        if mask is not None:
            # The lowest finite number, not -inf: softmax of a row of -inf is NaN.
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        # Written out because scaled_dot_product_attention falls back to a loop under vmap.
        x = x + self.out((scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)
