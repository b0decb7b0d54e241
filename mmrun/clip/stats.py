"""What a law did at one step, as tensors on the device, from which everything logged follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIELDS = ("raw", "clipped", "inner", "changed", "threshold", "payer", "elements")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What was done at one step. Float64 (float32 on MPS), on the device.

    The gradient comes in pieces, each within one scope: K parameters, or scopes where elements were changed one by
    one. It holds no gradient, so that many steps can be kept, and be worked out together (``stack``).

    Args:
        raw: L2 norm of each piece before clipping [..., K]; 0 where it has no gradient.
        clipped: the same after clipping [..., K].
        inner: inner product of each piece before and after [..., K].
        changed: number of elements that the law changed in each [..., K].
        threshold: the bound in force, for everything and for each scope [..., 1 + S]: on the p-norm for laws that
            scale, on an element for those that change elements; infinity where nothing is bounded.
        payer: for each scope [..., S], the coefficient that it got over the one that it alone would have
            needed: below 1 where it was scaled for the others' sake, 1 where units do not cross scopes.
        elements: number of elements that have a gradient [..., 1 + S], at least 1.
        member: which pieces make up everything and each scope, Bool [1 + S, K].
        scopes: names of the S scopes.
        dtype: precision of the norms, and of what is logged.
    """

    raw: Tensor
    clipped: Tensor
    inner: Tensor
    changed: Tensor
    threshold: Tensor
    payer: Tensor
    elements: Tensor
    member: Tensor
    scopes: tuple[str, ...]
    dtype: torch.dtype

    @classmethod
    def stack(cls, steps: Sequence[Stats]) -> Stats:
        """The stats of T steps as one, [T, ...]. All of one law; raises where their shapes differ."""
        stacked = {name: torch.stack([getattr(s, name) for s in steps]) for name in FIELDS}
        first = steps[0]
        return cls(**stacked, member=first.member, scopes=first.scopes, dtype=first.dtype)

    @classmethod
    def merge(
        cls,
        parts: Sequence[Stats],
        scopes: tuple[str, ...],
        members: dict[tuple[int, ...], Tensor],
    ) -> Stats:
        """One step's stats of laws that share the scopes out among them. The first part's threshold stands for all.

        Args:
            parts: of each law, on the scopes that are its own.
            scopes: all of them, in their order.
            members: what was made of the parts' members at earlier steps, which is kept here.
        """
        first = parts[0]
        device, wide = first.raw.device, first.raw.dtype
        key = tuple(id(part.member) for part in parts)
        if key not in members:
            members[key] = _member(parts, scopes)
        pieces = {
            name: torch.cat([getattr(part, name).to(device, wide) for part in parts])
            for name in ("raw", "clipped", "inner", "changed")
        }
        order = [[scope for part in parts for scope in part.scopes].index(each) for each in scopes]
        place = torch.tensor(order, dtype=torch.long).to(device, non_blocking=True)

        def by_scope(name: str, skip: int) -> Tensor:
            joined = torch.cat([getattr(part, name)[skip:].to(device, wide) for part in parts])
            return joined.index_select(0, place)

        threshold = torch.cat((first.threshold[:1], by_scope("threshold", 1)))
        counts = by_scope("elements", 1)
        return cls(
            **pieces,
            threshold=threshold,
            payer=by_scope("payer", 0),
            elements=torch.cat((counts.sum(0, keepdim=True), counts)),
            member=members[key],
            scopes=scopes,
            dtype=first.dtype,
        )

    @torch.no_grad()
    def by_scope(self) -> dict[str, Tensor]:
        """For everything (first) and for each scope, each [..., 1 + S].

        ``norm`` and ``norm_clipped``: L2 norms. ``coefficient``: norm_clipped / norm, 1 where that says nothing (no
        gradient, or a non-finite one). ``cosine``: of raw and clipped gradient, 1 where either is 0.
        ``elements``: share of the gradient's elements that the law changed. ``threshold``: as above.
        """
        raw, clipped = self.raw, self.clipped
        parts = torch.stack((raw * raw, clipped * clipped, self.inner, self.changed))  # [4, ..., K]
        # [4, ..., 1 + S]; selected, not multiplied by 0 and 1: a scope's inf stays in its scope.
        sums = torch.where(self.member, parts.unsqueeze(-2), 0.0).sum(-1)
        norm, norm_clipped = sums[:2].sqrt().unbind()
        quotients = torch.stack((norm_clipped / norm, sums[2] / (norm * norm_clipped)))
        coefficient, cosine = torch.nan_to_num(quotients, nan=1.0, posinf=math.inf).unbind()
        return {
            "norm": norm,
            "norm_clipped": norm_clipped,
            "cosine": cosine,
            "coefficient": torch.where(torch.isfinite(norm), coefficient, 1.0),
            "elements": sums[3] / self.elements,
            "threshold": self.threshold,
        }

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        """One field of ``by_scope``, everything under "", or the ``payer``, as {scope: 0-dim tensor}."""
        if name == "payer":
            return dict(zip(self.scopes, self.payer.unbind(-1), strict=True))
        return dict(zip(("", *self.scopes), self.by_scope()[name].unbind(-1), strict=True))


def _member(parts: Sequence[Stats], scopes: tuple[str, ...]) -> Tensor:
    """[1 + S, K] over the pieces of all parts, one after another."""
    device = parts[0].raw.device
    rows = [
        torch.cat(
            [
                part.member[1 + part.scopes.index(scope)].to(device)
                if scope in part.scopes
                else torch.zeros(part.member.shape[1], dtype=torch.bool, device=device)
                for part in parts
            ]
        )
        for scope in scopes
    ]
    return torch.stack([torch.ones_like(rows[0]), *rows])
