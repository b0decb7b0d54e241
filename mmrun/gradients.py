"""What happens to gradients between backward and the optimizer's step: combine, modulate, clip, measure.

Plain torch, once per optimizer step: after accumulation and all-reduce, on unscaled gradients. No host sync.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmrun.balance import Balance
from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.engine import Clipper
from mmrun.clip.stats import Stats
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
RAW = ("grad/norm", "grad/norm_clipped")  # of the gradient, also where the update is clipped
# With clip.on=update the clip's columns are of the update, which has norms of its own.
UPDATE = {"update/norm": "norm", "update/norm_clipped": "norm_clipped"}
PAYER = "clip/payer"  # for each scope only
NONFINITE = "grad/nonfinite"  # for everything only; 1 at a step whose raw norm is not finite


class Telemetry:
    """What one step's gradients looked like, on the device; worked out when it is asked for.

    To log many steps, keep them and ask ``rows`` for all at once: it takes hardly longer than one. With
    ``clip.on=update`` it is complete once the optimizer has made its step.

    Args:
        columns: the names, as logged.
        stats: of the gradients; it holds none of them.
        updates: where the report of the update will be; None where gradients are clipped.
        no_update: that report for a step that the optimizer did not make.
    """

    def __init__(
        self,
        columns: tuple[str, ...],
        stats: Stats,
        updates: list[Stats] | None = None,
        no_update: Callable[[], Stats] | None = None,
    ) -> None:
        self.columns = columns
        self.stats = stats
        self._updates = updates
        self._no_update = no_update

    @property
    def update(self) -> Stats | None:
        """What became of the update; None where gradients are clipped."""
        if self._updates is None or self._no_update is None:
            return None
        return self._updates[0] if self._updates else self._no_update()

    @cached_property
    def row(self) -> Tensor:
        """The values of ``columns`` at this step [C]; float32, or float64 with float64 gradients."""
        return _rows(self.stats, self.update)

    def __getitem__(self, column: str) -> Tensor:
        """One value, 0-dim."""
        return self.row[self.columns.index(column)]


def rows(steps: Sequence[Telemetry]) -> Tensor:
    """The values of ``columns`` at T > 0 steps of one pipeline [T, C], worked out together."""
    at_once = 64  # bounds the memory: 4 x 64 x (1 + scopes) x parameters numbers
    chunks = [steps[i : i + at_once] for i in range(0, len(steps), at_once)]
    return torch.cat([_stacked_rows(chunk) for chunk in chunks])


def _stacked_rows(steps: Sequence[Telemetry]) -> Tensor:
    updates = [update for step in steps if (update := step.update) is not None]
    return _rows(
        Stats.stack([step.stats for step in steps]), Stats.stack(updates) if updates else None
    )


@torch.no_grad()
def _rows(stats: Stats, update: Stats | None) -> Tensor:
    """Values in the order of ``GradientPipeline.columns`` [..., C]."""
    fields = stats.by_scope()
    total = fields["norm"][..., :1]
    nonfinite = (~torch.isfinite(total)).to(total.dtype)
    if update is None:
        parts = [fields[field] for field in BY_SCOPE.values()]
        return torch.cat([*parts, stats.payer, nonfinite], dim=-1).to(stats.dtype)
    clipped = update.by_scope()
    parts = [(fields if column in RAW else clipped)[field] for column, field in BY_SCOPE.items()]
    parts += [clipped[field] for field in UPDATE.values()]
    return torch.cat([*parts, update.payer, nonfinite], dim=-1).to(stats.dtype)


class GradientPipeline:
    """combine -> modulate -> clip -> measure.

    Args:
        clipper: the clip law at work; it is bound here.
        balance: how modalities share the gradient.
        scopes: {scope: {parameter name: Parameter}}; every trainable parameter in exactly one scope.
        anatomy: what the parameters are within their modules.

    Attributes:
        columns: names of a row's values; fixed from the start.

    Raises:
        UserError: a parameter is in two scopes.
    """

    def __init__(
        self,
        clipper: Clipper,
        balance: Balance,
        scopes: Mapping[str, Mapping[str, nn.Parameter]],
        anatomy: Anatomy = NO_ANATOMY,
    ) -> None:
        clipper.bind(scopes, anatomy)
        self.clipper = clipper
        self.balance = balance
        self.scopes = {scope: dict(named) for scope, named in scopes.items()}
        columns: list[str] = []
        for column in (*BY_SCOPE, *(UPDATE if clipper.on == "update" else ())):
            columns += [column, *(f"{column}/{scope}" for scope in scopes)]
        self.columns: tuple[str, ...] = (*columns, *(f"{PAYER}/{s}" for s in scopes), NONFINITE)

    @property
    def steps(self) -> int:
        """How many times ``apply`` was called."""
        return self.clipper.steps

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
        self._modulate()
        stats = self.clipper.apply(optimizer)
        if self.clipper.on != "update":
            return Telemetry(self.columns, stats)
        return Telemetry(self.columns, stats, self.clipper.updates, self.clipper.no_update)

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

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the clip have this optimizer's updates, where it is them that it clips."""
        self.clipper.attach(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The clip's state; goes under ``checkpoint["clip"]``."""
        return self.clipper.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.clipper.load_state_dict(state)
