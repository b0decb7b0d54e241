"""The contract of a clip law: bound once to parameters by scope, applied once per optimizer step.

``apply`` reads ``.grad``, changes it in place and returns what it did as tensors on the device. It never waits for
the device: no ``.item()``, no ``bool(tensor)``, no Python ``min`` of tensors, no boolean indexing (a test runs every
law under FakeTensorMode, where each of these raises). What every law keeps to:

- A parameter without a gradient at this step (or a frozen one) is skipped: its norm is 0, its state stays.
- Gradients that need no clipping keep their bits.
- Norms are summed in float32 at least, in float64 for float64 gradients.
- A unit with a non-finite norm passes as it is, and leaves the law's state as it was: write state with
  ``torch.where(torch.isfinite(norm), new, old)``.
- The number that one sweeps is called ``threshold``; infinity is "off".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrun.clip.layout import Gradients, Layout, Scopes
from mmrun.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What a law did at one step, from which everything logged follows. Float64 (float32 on MPS), on the device.

    The gradient comes in pieces, each within one scope: K parameters, or scopes where a law measures whole scopes.
    It holds no gradient, so that many steps can be kept, and be worked out together (``stack``).

    Args:
        raw: L2 norm of each piece's gradient before clipping [..., K]; 0 where it has none.
        clipped: the same after clipping [..., K].
        inner: inner product of each piece before and after [..., K].
        changed: number of elements changed in each [..., K].
        threshold: the bound in force, for everything and for each scope [..., 1 + S], in the law's unit.
        payer: for each scope [..., S], the coefficient that it got over the one that it alone would have
            needed: below 1 where it was scaled for the others' sake, 1 where units do not cross scopes.
        elements: number of elements that have a gradient [..., 1 + S], at least 1.
        member: which pieces make up everything and each scope, Bool [1 + S, K].
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
    dtype: torch.dtype

    @classmethod
    def stack(cls, steps: Sequence[Stats]) -> Stats:
        """The stats of T steps as one, [T, ...]. All of one law; raises where their shapes differ."""
        names = ("raw", "clipped", "inner", "changed", "threshold", "payer", "elements")
        stacked = {name: torch.stack([getattr(s, name) for s in steps]) for name in names}
        return cls(**stacked, member=steps[0].member, dtype=steps[0].dtype)

    @torch.no_grad()
    def by_scope(self) -> dict[str, Tensor]:
        """For everything (first) and for each scope, each [..., 1 + S].

        ``norm`` and ``norm_clipped``: L2 norms. ``coefficient``: norm_clipped / norm, 1 where that says nothing (no
        gradient, or a non-finite one that passed). ``cosine``: of raw and clipped gradient, 1 where either is 0.
        ``elements``: share of the gradient's elements that changed. ``threshold``: as above.
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
            "coefficient": coefficient,
            "elements": sums[3] / self.elements,
            "threshold": self.threshold,
        }


class Law(ABC):
    """A clip law. See the module for what every law keeps to.

    Args:
        threshold: the number that one sweeps, in the law's own unit; > 0, infinity is "off".
        record_every: optimizer steps between two rows that the run records; the law itself measures every step.

    Raises:
        UserError: a number out of range.
    """

    algorithm: ClassVar[str]  # the name for logs: that of the option

    def __init__(self, *, threshold: float, record_every: int = 1) -> None:
        self.threshold = positive(
            "threshold", threshold, hint="Use clip=none to switch clipping off."
        )
        if isinstance(record_every, bool) or int(record_every) != record_every or record_every < 1:
            raise UserError(
                "clip.record_every counts optimizer steps",
                given=record_every,
                remedy="Give a whole number from 1.",
            )
        self.record_every = int(record_every)
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """What the law is bound to."""
        if self._layout is None:
            raise RuntimeError(f"{type(self).__name__}.bind(...) comes before apply()")
        return self._layout

    def bind(self, scopes: Scopes) -> None:
        """Bind to {scope: {parameter name: Parameter}}; afresh, so that state starts anew.

        Raises:
            UserError: a parameter is in two scopes.
        """
        self._layout = Layout(scopes)

    @torch.no_grad()
    def apply(self) -> Stats:
        """Clip the gradients in place and say what was done; once per optimizer step."""
        return self.clip(self.layout.gather())

    @abstractmethod
    def clip(self, gradients: Gradients) -> Stats:
        """The law itself, on this step's gradients."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, by scope or parameter name: tensors and plain numbers. {} by itself."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; after ``bind``.

        Raises:
            UserError: the state is another law's.
        """
        if state:
            raise UserError(
                f"clip={self.algorithm} keeps no state",
                given=", ".join(sorted(state)),
                remedy="Resume with the clip law that the checkpoint was written with.",
            )


def positive(key: str, value: float, *, hint: str = "") -> float:
    """``value`` as a float > 0, infinity included.

    Raises:
        UserError: it is not; names ``clip.<key>``.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        raise UserError(
            f"clip.{key} must be a number above 0",
            given=value,
            remedy=f"Give a positive number, or .inf for no bound. {hint}".strip(),
        )
    return number
