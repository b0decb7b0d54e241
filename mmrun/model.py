"""The model: encoders by modality, what fills missing ones, the fusion, and the two clips of features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmrun.batch import Batch, Tokens
from mmrun.clip.boundary import clamp_features, clip_gradient
from mmrun.encoders import Encoder
from mmrun.fusion import Fusion
from mmrun.missing import Missing


class MultimodalModel(nn.Module):
    """Batch -> tokens by modality and the fused feature.

    Args:
        encoders: {modality: Encoder}.
        missing: takes modalities away and fills gaps.
        fusion: tokens -> fused feature; None where the objective needs none.
        seed: decides which modalities an evaluation sample misses.
        feature_clip: eps; the fused feature is clamped to [-eps, eps]; inf leaves it.
        straight_through: whether the gradient passes a clamped feature unchanged.
        gradient_clip: per sample, the largest L2 norm of the gradient that passes from the fusion
            into each encoder; inf leaves it.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        missing: Missing,
        fusion: Fusion | None,
        *,
        seed: int = 0,
        feature_clip: float = float("inf"),
        straight_through: bool = False,
        gradient_clip: float = float("inf"),
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.missing = missing
        self.fusion = fusion
        self.seed = seed
        self.feature_clip = feature_clip
        self.straight_through = straight_through
        self.gradient_clip = gradient_clip

    def forward(self, batch: Batch) -> tuple[dict[str, Tokens], Tensor | None]:
        """Tokens {modality: Tokens} after filling, and the fused feature [B, D] (or None)."""
        present = self.missing.thin(batch.present, batch.index, self.seed)
        inputs, present = self.missing.fill_inputs(batch.inputs, present)
        tokens = {
            name: encoder(inputs[name], batch.mask.get(name)).keep(present[name])
            for name, encoder in self.encoders.items()
        }
        tokens, present = self.missing.fill_tokens(tokens, present)
        if self.fusion is None:
            return tokens, None
        clipped = {name: self._clip_gradient(each) for name, each in tokens.items()}
        fused = self.fusion(clipped)
        return tokens, clamp_features(fused, self.feature_clip, self.straight_through)

    def _clip_gradient(self, tokens: Tokens) -> Tokens:
        c = self.gradient_clip
        return Tokens(clip_gradient(tokens.values, c), tokens.mask, clip_gradient(tokens.pooled, c))
