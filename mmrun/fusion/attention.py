"""Self-attention among the modalities, one vector each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmrun.batch import Tokens
from mmrun.errors import UserError
from mmrun.fusion import Fusion


class Attention(Fusion):
    """x_m = W_m pooled_m + e_m; blocks of self-attention over the present x_m; their mean.

    Source: Vaswani et al., Attention Is All You Need, 2017 (arXiv 1706.03762), with the norm inside
    the residual branch; e_m is a learned embedding of the modality.

    Args:
        dims: {modality: width}.
        dim: common width D; a multiple of ``heads``.
        heads: attention heads.
        layers: number of blocks.
        hidden: width of the blocks' two-layer perceptron.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        dim: int = 64,
        heads: int = 4,
        layers: int = 1,
        hidden: int = 128,
    ) -> None:
        super().__init__(dims)
        for name, value in (("dim", dim), ("heads", heads), ("layers", layers), ("hidden", hidden)):
            if value < 1:
                raise UserError(
                    f"the fusion's {name} is too small",
                    given=value,
                    remedy="Give a positive whole number.",
                )
        if dim % heads:
            raise UserError(
                "the fusion's dim must be a multiple of its heads",
                given=f"dim={dim}, heads={heads}",
                remedy="Change one of them.",
            )
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, dim, bias=False) for name, width in self.dims.items()}
        )
        self.embedding = nn.Parameter(0.02 * torch.randn(len(self.modalities), dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(layers))
        self.dim = dim

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Mean of the attended vectors over the present modalities, [B, D]."""
        there = torch.stack([tokens[name].mask.any(dim=1) for name in self.modalities], dim=1)
        vectors = [self.projections[name](tokens[name].pooled) for name in self.modalities]
        x = torch.stack(vectors, dim=1) + self.embedding  # [B, M, D]
        for block in self.blocks:
            x = block(x, there)
        kept = torch.where(there.unsqueeze(-1), x, 0.0)
        return kept.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)


class Block(nn.Module):
    """x += attention(norm(x)), then x += mlp(norm(x)), for x [B, M, D]."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Attend to the modalities that are there, Bool [B, M]; with none of them, to all."""
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1))  # [B, M, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, M, d]
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5  # [B, heads, M, M]
        # The lowest finite number, not -inf: softmax of a row of -inf is NaN.
        scores = scores.masked_fill(~there[:, None, None], torch.finfo(scores.dtype).min)
        # Written out because scaled_dot_product_attention falls back to a loop under vmap.
        x = x + self.out((scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)
