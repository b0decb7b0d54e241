"""The model: encoders by modality, what fills missing ones, the fusion, and the two clips of features."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from mmrun.batch import Batch, Tokens
from mmrun.bounds import Bound, bound
from mmrun.clip.boundary import clamp_features, clip_gradients
from mmrun.encoders import Encoder
from mmrun.fusion import Fusion
from mmrun.missing import Missing
from mmrun.watching import UNWATCHED, Watch


class MultimodalModel(nn.Module):
    """Batch -> tokens by modality and the fused feature.

    The bounds are off at infinity. Each may be ``pNN``: that percentile of |element| of the fused feature, or of the
    samples' norms by modality, over some training batches on the initial weights; off until ``calibration`` has set it.

    A decision-level fusion (late) has one feature per modality, [B, M, D], and a head for each: then ``feature_clip``
    clamps every modality's own decision feature, elementwise and by one bound, before its head; the share of clamped
    elements is of all B M D, those of absent modalities included. ``gradient_clip`` bounds what one modality's head
    sends back to its encoder: no other modality is in it, and the weight that its prediction has in the average is, so
    that with equal weights norms are about M times smaller than a head of its own would give.

    Args:
        encoders: {modality: Encoder}.
        missing: takes modalities away and fills gaps.
        fusion: tokens -> fused feature; None where the objective needs none.
        seed: decides which modalities an evaluation sample misses.
        feature_clip: eps; the fused feature is clamped to [-eps, eps].
        straight_through: whether the gradient passes a clamped feature unchanged.
        gradient_clip: per sample, the largest L2 norm of the gradient that passes from the fusion into each encoder:
            over ``values`` and ``pooled`` together, whichever of them the fusion reads.

    Attributes:
        gradient_scale: how many times larger gradients are in the backward pass than the step's own; set by who trains.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        missing: Missing,
        fusion: Fusion | None,
        *,
        seed: int = 0,
        feature_clip: float | str = math.inf,
        straight_through: bool = False,
        gradient_clip: float | str = math.inf,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.missing = missing
        self.fusion = fusion
        self.seed = seed
        self.feature_clip = bound("feature_clip", feature_clip)
        self.straight_through = straight_through
        self.gradient_clip = nn.ModuleDict(
            {name: bound("gradient_clip", gradient_clip) for name in encoders}
        )
        self.gradient_scale: float | Tensor = 1.0

    @property
    def bounds(self) -> tuple[Bound, dict[str, Bound]]:
        """The bound on the fused feature and {modality: that on its gradient}; where nothing is fused, all are off."""
        if self.fusion is None:
            return Bound(math.inf), {}
        named = {name: each for name, each in self.gradient_clip.items() if isinstance(each, Bound)}
        return self.feature_clip, named

    def forward(
        self, batch: Batch, watch: Watch = UNWATCHED
    ) -> tuple[dict[str, Tokens], Tensor | None]:
        """Tokens {modality: Tokens} after filling, and the fused feature [B, D] (or [B, M, D], or None)."""
        present = self.missing.thin(batch.present, batch.index, self.seed)
        inputs, present = self.missing.fill_inputs(batch.inputs, present)
        tokens = {
            name: encoder(inputs[name], batch.mask.get(name)).keep(present[name])
            for name, encoder in self.encoders.items()
        }
        tokens, present = self.missing.fill_tokens(tokens, present)
        if self.fusion is None:
            return tokens, None
        clipped = {name: self._clip_gradient(name, each, watch) for name, each in tokens.items()}
        fused = self.fusion(clipped)
        watch.features(fused)
        return tokens, clamp_features(fused, self.feature_clip.value, self.straight_through)

    def _clip_gradient(self, modality: str, tokens: Tokens, watch: Watch) -> Tokens:
        limit = self.gradient_clip[modality]
        assert isinstance(limit, Bound)
        values, pooled = clip_gradients(
            (tokens.values, tokens.pooled),
            limit.value,
            scale=self.gradient_scale,
            measure=watch.gradients(modality, tokens.mask),
        )
        return Tokens(values, tokens.mask, pooled)
