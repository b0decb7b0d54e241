"""What happens to gradients between backward and the optimizer's step: combine, modulate, clip, measure.

Plain torch, once per optimizer step: after accumulation and all-reduce, on unscaled gradients. No host sync.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmrun.balance import Balance
from mmrun.clip.law import Law, Stats
from mmrun.errors import UserError, nearest

# Columns that exist for everything and for each scope: <column> and <column>/<scope>.
BY_SCOPE = {
    "grad/norm": "norm",
    "grad/norm_clipped": "norm_clipped",
    "grad/cosine": "cosine",
    "clip/coefficient": "coefficient",
    "clip/elements": "elements",
    "clip/threshold": "threshold",
}
PAYER = "clip/payer"  # for each scope only
NONFINITE = "grad/nonfinite"  # for everything only; 1 at a step whose raw norm is not finite


@dataclass(frozen=True)
class Telemetry:
    """What one step's gradients looked like, on the device; worked out when it is asked for.

    To log many steps, keep them and ask ``rows`` for all at once: it takes hardly longer than one.

    Args:
        columns: the names, as logged.
        stats: the clip law's own report; it holds no gradient.
    """

    columns: tuple[str, ...]
    stats: Stats

    @cached_property
    def row(self) -> Tensor:
        """The values of ``columns`` at this step [C]; float32, or float64 with float64 gradients."""
        return _rows(self.stats)

    def __getitem__(self, column: str) -> Tensor:
        """One value, 0-dim."""
        return self.row[self.columns.index(column)]


def rows(steps: Sequence[Telemetry]) -> Tensor:
    """The values of ``columns`` at T > 0 steps of one pipeline [T, C], worked out together."""
    stats = [step.stats for step in steps]
    at_once = 64  # bounds the memory: 4 x 64 x (1 + scopes) x parameters numbers
    chunks = (stats[i : i + at_once] for i in range(0, len(stats), at_once))
    return torch.cat([_rows(Stats.stack(chunk)) for chunk in chunks])


@torch.no_grad()
def _rows(stats: Stats) -> Tensor:
    """Values in the order of ``GradientPipeline.columns`` [..., C]."""
    fields = stats.by_scope()
    total = fields["norm"][..., :1]
    nonfinite = (~torch.isfinite(total)).to(total.dtype)
    parts = [fields[field] for field in BY_SCOPE.values()]
    return torch.cat([*parts, stats.payer, nonfinite], dim=-1).to(stats.dtype)


class GradientPipeline:
    """combine -> modulate -> clip -> measure.

    Args:
        law: the clip law; it is bound here.
        balance: how modalities share the gradient.
        scopes: {scope: {parameter name: Parameter}}; every trainable parameter in exactly one scope.

    Attributes:
        columns: names of a row's values; fixed from the start.
        steps: how many times ``apply`` was called.

    Raises:
        UserError: a parameter is in two scopes.
    """

    def __init__(
        self, law: Law, balance: Balance, scopes: Mapping[str, Mapping[str, nn.Parameter]]
    ) -> None:
        law.bind(scopes)
        self.law = law
        self.balance = balance
        self.scopes = {scope: dict(named) for scope, named in scopes.items()}
        columns: list[str] = []
        for column in BY_SCOPE:
            columns += [column, *(f"{column}/{scope}" for scope in scopes)]
        self.columns: tuple[str, ...] = (*columns, *(f"{PAYER}/{s}" for s in scopes), NONFINITE)
        self.steps = 0

    @torch.no_grad()
    def combine(self, gradients: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write into ``.grad`` what ``balance`` makes of each loss's gradients.

        For methods that need gradients per loss; the module hands them over before ``apply``. Parameters that
        are not named keep the ``.grad`` that they have.

        Args:
            gradients: {loss: {parameter name: Tensor}}, names unique over scopes, unscaled and reduced.

        Raises:
            UserError: a name that no scope has.
        """
        named = {name: p for scope in self.scopes.values() for name, p in scope.items()}
        if len(named) != sum(len(scope) for scope in self.scopes.values()):
            raise ValueError("combine needs parameter names that are unique over scopes")
        for name, gradient in self.balance.combine(gradients).items():
            if name not in named:
                raise UserError(
                    "no scope has this parameter", given=name, remedy=nearest(name, named)
                )
            # A copy: torch.autograd.grad may give two parameters one tensor, and clipping is in place.
            named[name].grad = gradient.detach().clone()

    def apply(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
    ) -> Telemetry:
        """Modulate, clip and measure the gradients; once per optimizer step.

        Args:
            optimizer: whose step follows.
            scaler: a gradient scaler that has not unscaled this optimizer's gradients yet; None otherwise.
        """
        if scaler is not None:
            scaler.unscale_(optimizer)
        self.steps += 1
        self._modulate()
        return Telemetry(self.columns, self.law.apply())

    @torch.no_grad()
    def _modulate(self) -> None:
        for scope, scale in self.balance.scales().items():
            if scope not in self.scopes:
                raise UserError(
                    "balance scales a scope that does not exist",
                    given=scope,
                    remedy=nearest(scope, self.scopes),
                )
            unique = {id(p): p.grad for p in self.scopes[scope].values() if p.grad is not None}
            for gradient in unique.values():
                gradient.mul_(scale)

    def state_dict(self) -> dict[str, Any]:
        """The law's state and the number of steps; goes under ``checkpoint["clip"]``."""
        return {"steps": self.steps, "law": self.law.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.law.load_state_dict(state["law"])
        self.steps = int(state["steps"])
