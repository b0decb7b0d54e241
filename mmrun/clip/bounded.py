"""Scalings whose threshold is a norm: it can be shared out among units, and be a percentile of norms that were seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.layout import PLANS, Per, Scopes
from mmrun.clip.memory import Field
from mmrun.clip.percentile import bound_at, percentile_in
from mmrun.clip.recent import Recent
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients
from mmrun.errors import UserError, nearest

Budget = Literal["total", "each"]
Split = Literal["equal", "size", "norm"]
MEMORY = 0.99  # of the running mean of measured norms, for split=norm


class Bounded(Scaling):
    """A scaling by a threshold in units of the gradient's p-norm.

    Args:
        threshold: c, in units of the gradient's p-norm; infinity is "off". ``"p90"``: each unit's own, the 90th
            percentile of the norms that ``calibrate`` is given; one that had none there, frozen or never seen,
            has no bound.
        per: the unit, as in ``Scaling``.
        p: order of the norm. |g|^p is summed in float32 (float64 for float64 gradients); where the sum overflows, for
            p = 2 at elements above about 1e19, the norm is infinite. Such a gradient counts as not finite: it
            passes as it is, and ``Clipper`` leaves the step out. So it is for a small p, whose 1/p-th power overflows.
        budget: what c is shared by. ``total``: the units' shares c w_u have the p-norm c, so that the whole gradient's
            p-norm is at most c however it is cut up; ``each``: every unit gets c. Units that can have no gradient
            at this step, being frozen, have no share; what is unfrozen later takes its own from then on.
        split: the shares of a total: ``equal`` (w_u = K^(-1/p) for K units), by ``size`` (w_u^p in proportion to
            the number of elements), or by ``norm`` (w_u^p in proportion to a running mean of n_u^p, weight 0.99).

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    def __init__(
        self,
        threshold: float | str,
        *,
        per: Per = "global",
        p: float = 2.0,
        budget: Budget = "total",
        split: Split = "equal",
    ) -> None:
        self.percentile = _percentile(threshold)
        super().__init__(math.inf if self.percentile else threshold, per=per, p=p)  # pyright: ignore[reportArgumentType]
        for key, value, known in (("budget", budget, Budget), ("split", split, Split)):
            if value not in get_args(known):
                raise UserError(
                    f"there is no such clip.{key}",
                    given=value,
                    remedy=nearest(str(value), get_args(known)),
                )
        self.budget: Budget = budget
        self.split: Split = split
        self._shared: Recent[tuple[bool, ...], list[float]] = Recent(PLANS)
        self._calibrated = False

    def fields(self) -> dict[str, Field]:
        """What was calibrated, and the running mean of n^p, where they are used."""
        fields = {"calibrated": Field(math.inf)} if self.percentile else {}
        return fields | ({"mean": Field()} if self._shares() and self.split == "norm" else {})

    def _shares(self) -> bool:
        return self.per != "global" and self.budget == "total" and not self.percentile

    def bind(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        """Bind, and share the threshold out to the units."""
        super().bind(scopes, anatomy)
        self._calibrated = False
        self._shared.clear()
        self._weights(tuple(self.layout.requires_grad))

    def _weights(self, open_: tuple[bool, ...]) -> list[float]:
        """Each unit's share of c [U], 0 where it can have no gradient; ``open_``: the parameters that can."""
        known = self._shared.get(open_)
        if known is None:
            known = self._shared[open_] = self._shares_out(open_)
        return known

    def _shares_out(self, open_: tuple[bool, ...]) -> list[float]:
        units = self.layout.open_units(open_, self.per)
        sizes: list[float] = [1.0] * len(units)
        if self.budget == "total" and self.split == "size":
            sizes = self._sizes()
        wanted = [size * yes for size, yes in zip(sizes, units, strict=True)]
        whole = self._whole(wanted, open_) if self.budget == "total" else 1.0
        return [(each / whole) ** (1.0 / self.p) if each else 0.0 for each in wanted]

    def _sizes(self) -> list[float]:
        layout = self.layout
        numel = [p.numel() for p in layout.parameters]
        if self.per == "global":
            return [1.0]
        if self.per == "modality":
            pairs = list(zip(layout.owners, numel, strict=True))
            return [float(sum(n for k, n in pairs if k == s)) for s in range(len(layout.scopes))]
        if self.per == "tensor":
            return [float(n) for n in numel]
        counts = zip(numel, layout.rows, layout.all_rows, strict=True)
        return [n / every for n, here, every in counts for _ in range(here)]

    def _whole(self, wanted: list[float], open_: tuple[bool, ...]) -> float:
        """What is shared out: the sum over all units, also those in other processes."""
        layout = self.layout
        if self.per != "unit" or not layout.is_spread:
            return sum(wanted)
        if self.split == "size":
            numel = [p.numel() for p in layout.parameters]
            return float(sum(n for n, yes in zip(numel, open_, strict=True) if yes))
        return float(sum(n for n, yes in zip(layout.all_rows, open_, strict=True) if yes))

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor | float:
        """c, each unit's share of it, or what was calibrated."""
        plan = gradients.plan
        if self.percentile:
            if not self._calibrated:
                raise RuntimeError("calibrate(...) comes before a percentile can bound anything")
            return self.memory.on(plan.device, plan.wide)["calibrated"] * self.factor
        if self.per == "global":
            return self.current
        if self.split == "norm" and self.budget == "total":
            return self._by_norm(norms, gradients)
        weights = plan.constants(self._weights(plan.open))
        if not self.is_off:
            return weights * self.current
        # Not infinity times 0: a unit that can have no gradient.
        return torch.where(weights > 0, plan.filled(math.inf, len(weights)), 0.0)

    def _by_norm(self, norms: Tensor, gradients: Gradients) -> Tensor:
        plan = gradients.plan
        state = self.memory.on(plan.device, plan.wide)
        ok = self.teaches(norms, gradients)
        power = norms**self.p
        mean = torch.where(state["mean"] > 0, MEMORY * state["mean"] + (1 - MEMORY) * power, power)
        self.memory.keep(ok, {"mean": mean})
        # A unit that nothing was learnt of yet has the share of what it is now.
        seen = torch.where((norms > 0) & (norms < math.inf), power, 0.0)
        mean = torch.where(state["mean"] > 0, state["mean"], seen)
        if self.is_off:
            return torch.full_like(mean, math.inf)
        whole = (plan.sum_rows(mean) if self.per == "unit" else mean).sum()
        return self.current * (mean / whole).nan_to_num(nan=0.0) ** (1.0 / self.p)

    # Calibration

    def calibrate(self, norms: Tensor) -> dict[str, float]:
        """Set each unit's threshold to the percentile of norms that were seen; returns {unit: threshold}.

        Args:
            norms: p-norms of the units at some steps [T, U]; those that are 0 or not finite do not count.

        Raises:
            UserError: nothing to go by, or norms so uneven that a percentile says nothing.
        """
        assert self.percentile is not None
        found: list[float] = []
        names = [name for name, n in self.layout.slots(self.per) for _ in range(n)]
        trainable = self.layout.open_units(self.layout.requires_grad, self.per)
        for name, yes, column in zip(names, trainable, norms.double().cpu().unbind(1), strict=True):
            seen = column[torch.isfinite(column) & (column > 0)].numpy()
            if not yes or (not seen.size and self.per != "global"):
                found.append(math.inf)
                continue
            if not seen.size:
                raise UserError(
                    "clip.threshold cannot be calibrated: no gradient was finite and above 0",
                    given=f"p{self.percentile:g}",
                    remedy="Give a number, and look at the data's scale.",
                )
            key = f"clip.threshold of {name}" if name else "clip.threshold"
            found.append(bound_at(self.percentile, seen, key))
        units = self.layout.slots(self.per)
        parts = torch.tensor(found, dtype=torch.float64).split([n for _, n in units])
        spread = self.memory.spread
        state = {
            name: spread[name].whole(part) if name in spread else part
            for (name, _), part in zip(units, parts, strict=True)
        }
        self.load_state_dict({"calibrated": state})
        return dict(zip(names, found, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; what was calibrated stays so."""
        super().load_state_dict(state)
        self._calibrated = "calibrated" in state


def _percentile(threshold: Any) -> float | None:
    """90 of ``p90``; None for a number."""
    if not isinstance(threshold, str):
        return None
    percentile = percentile_in(threshold)
    if percentile is None:
        raise UserError(
            "clip.threshold is a number or a percentile",
            given=threshold,
            remedy="Write e.g. 0.5, or p90 for the 90th percentile of the norms on the initial weights.",
        )
    return percentile
