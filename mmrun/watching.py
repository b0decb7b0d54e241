"""What feature clipping did: the shares of features clamped and of gradients shortened, kept on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmrun.bounds import Bound
from mmrun.clip.boundary import Measure
from mmrun.runs.features import CLAMPED, LARGEST, LONGEST, SHORTENED

# What was seen in one step: number that was clipped, of how many, and the largest.
Seen = tuple[Tensor, Tensor | int, Tensor]


class Watch:
    """What looks on during one forward pass of the model and its backward pass; by itself at nothing."""

    def features(self, fused: Tensor) -> None:
        """Look at the fused feature, before it is clamped."""

    def gradients(self, modality: str, there: Tensor) -> Measure | None:  # noqa: ARG002 (contract)
        """What is to be told of the gradient from the fusion into an encoder; None for nothing.

        Args:
            modality: the encoder's.
            there: Bool [B, T], the tokens' mask.
        """
        return None


UNWATCHED = Watch()


class FeatureMeter(Watch):
    """Counts over a step's micro-batches, and keeps the steps until they are asked for; never waits for the device.

    Shares are of what there was: of all elements of the fused feature; of the samples that have the modality (or its
    filling). A modality into which no gradient goes has a share of 0. One backward pass is one look: a method that
    takes the gradient of each loss apart gives one for each.

    Args:
        feature_clip: the bound on features.
        gradient_clip: {modality: the bound on its gradient}.

    Attributes:
        columns: names of a row's values; only of bounds that are on.
    """

    def __init__(self, feature_clip: Bound, gradient_clip: Mapping[str, Bound]) -> None:
        self.feature_clip = feature_clip
        self.names: dict[str, tuple[str, str]] = {}
        if feature_clip.on:
            self.names[CLAMPED] = (CLAMPED, LARGEST)
        for modality, bound in gradient_clip.items():
            if bound.on:
                self.names[modality] = (f"{SHORTENED}/{modality}", f"{LONGEST}/{modality}")
        self.columns = tuple(column for pair in self.names.values() for column in pair)
        self._now: dict[str, Seen] = {}
        self._steps: list[dict[str, Seen]] = []

    def features(self, fused: Tensor) -> None:
        """Count the elements that the clamp will change."""
        if CLAMPED not in self.names:
            return
        size = fused.detach().abs()
        clamped = (size > self.feature_clip.value).sum()
        self._add(CLAMPED, (clamped, size.numel(), size.amax()))

    def gradients(self, modality: str, there: Tensor) -> Measure | None:
        """Count the samples that are shortened, of those that are there."""
        if modality not in self.names:
            return None
        present = there.any(dim=1)  # [B]

        def measure(norm: Tensor, shortened: Tensor) -> None:
            longest = torch.where(present, norm, 0.0).amax()
            self._add(modality, ((shortened & present).sum(), present.sum(), longest))

        return measure

    def _add(self, key: str, seen: Seen) -> None:
        before = self._now.get(key)
        if before is not None:
            clipped, total, largest = before
            seen = (clipped + seen[0], total + seen[1], torch.maximum(largest, seen[2]))
        self._now[key] = seen

    def end_step(self) -> None:
        """An optimizer step is done: what is seen from now on is the next one's."""
        if self.names:
            self._steps.append(self._now)
            self._now = {}

    def take(self, like: Tensor) -> Tensor:
        """The values of ``columns`` at the T steps since the last call [T, C]; T and the type are ``like``'s [T, ...]."""
        steps, self._steps = self._steps, []
        zero = like.new_zeros(())
        columns: list[Tensor] = []
        for key in self.names:
            seen = [step.get(key, (zero, zero, zero)) for step in steps]
            clipped, total, largest = (
                torch.stack([zero + each for each in column]) for column in zip(*seen, strict=True)
            )
            columns += [clipped / total.clamp(min=1), largest]
        return torch.stack(columns, dim=1) if columns else like.new_zeros(len(like), 0)

    def pending(self) -> dict[str, list[Tensor]]:
        """What is seen of a step that is not done: it belongs in a checkpoint."""
        return {key: [torch.as_tensor(e).cpu() for e in seen] for key, seen in self._now.items()}

    def resume(self, ranks: Sequence[Mapping[str, Sequence[Tensor]]], device: torch.device) -> None:
        """Go on from what these ranks had seen, together."""
        self._now = {}
        for pending in ranks:
            for key, seen in pending.items():
                clipped, total, largest = (each.to(device) for each in seen)
                self._add(key, (clipped, total, largest))
