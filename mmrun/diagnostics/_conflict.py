"""Do modalities pull at shared weights in one direction? The cosine between the gradients of their losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from mmrun.batch import Batch


def alone(batch: Batch, modality: str) -> Batch:
    """The samples that have a modality, with all others taken away."""
    mine = batch.take(batch.present[modality].nonzero().squeeze(1))
    present = {
        name: there if name == modality else torch.zeros_like(there)
        for name, there in mine.present.items()
    }
    return replace(mine, present=present)


def cosines(gradients: Mapping[str, Sequence[Tensor]]) -> dict[tuple[str, str], Tensor]:
    """<g_a, g_b> / (|g_a| |g_b|) for each pair, over the elements that both losses reach.

    A loss does not reach an element whose gradient is exactly zero: the columns of a linear head after a concatenation belong
    to one modality each, and only its bias is shared. NaN where nothing is shared. Below 0 the two are in conflict, as
    Yu et al. 2020 (arXiv 2001.06782) call it.

    Args:
        gradients: {name: gradient by tensor}, tensors in the same order.
    """
    found: dict[tuple[str, str], Tensor] = {}
    for a, b in combinations(gradients, 2):
        sums = torch.tensor(0.0, dtype=torch.float64).expand(3)
        for one, other in zip(gradients[a], gradients[b], strict=True):
            x, y = one.double(), other.double()
            both = (x != 0) & (y != 0)
            here = [(x * y).sum(), (x.square() * both).sum(), (y.square() * both).sum()]
            sums = sums.to(x.device) + torch.stack(here)
        dot, xx, yy = sums
        length = xx.sqrt() * yy.sqrt()
        found[a, b] = torch.where(length > 0, dot / length, math.nan)
    return found
