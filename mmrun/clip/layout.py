"""What a law is bound to: parameters by scope, and the gradients that they have at one step.

Everything that does not change from step to step (which tensor belongs to which scope, how many
elements it has) is worked out once per set of parameters that have a gradient, and kept.

Shape legend: N parameters, S scopes, U units. In [1 + S] and [1 + S, N] row 0 is everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

# One call for many tensors, as in torch.nn.utils.clip_grad: the fastest way measured, on a CPU too.
from torch import Tensor, _foreach_mul_, _foreach_norm, nn  # pyright: ignore[reportPrivateImportUsage]

from mmrun.errors import UserError

Scopes = Mapping[str, Mapping[str, nn.Parameter]]
Per = Literal["global", "modality", "tensor"]
EACH = -1


class Layout:
    """Parameters by scope, each once.

    Args:
        scopes: {scope: {parameter name: Parameter}}; a scope may be empty. A parameter under two names of
            one scope counts once, under the first; one without elements is left out.

    Raises:
        UserError: a parameter is in two scopes, or is complex.
    """

    def __init__(self, scopes: Scopes) -> None:
        self.scopes: tuple[str, ...] = tuple(scopes)
        parameters: list[nn.Parameter] = []
        names: list[str] = []
        owners: list[int] = []
        seen: dict[int, tuple[int, str]] = {}
        for k, (scope, named) in enumerate(scopes.items()):
            for name, parameter in named.items():
                owner, first = seen.setdefault(id(parameter), (k, name))
                if owner != k:
                    raise UserError(
                        "a parameter is in two scopes",
                        given=f"{self.scopes[owner]}/{first} and {scope}/{name}",
                        remedy="Put tied weights into one scope of their own, such as shared.",
                    )
                if first != name or parameter.numel() == 0:
                    continue
                if parameter.is_complex():
                    raise UserError(
                        "clipping works on real gradients",
                        given=f"{scope}/{name}, {parameter.dtype}",
                        remedy="Hold complex weights as real tensors (torch.view_as_real).",
                    )
                parameters.append(parameter)
                names.append(f"{scope}/{name}")
                owners.append(k)
        self.parameters: tuple[nn.Parameter, ...] = tuple(parameters)
        # "<scope>/<parameter name>": the keys of a law's state.
        self.names: tuple[str, ...] = tuple(names)
        self.owners: tuple[int, ...] = tuple(owners)  # index of each parameter's scope, ascending
        self._plans: dict[object, Plan] = {}

    def units(self, per: Per) -> int:
        """How many units share a budget: the trainable parameters, or the scopes that have any."""
        trainable = [p.requires_grad for p in self.parameters]
        if per == "tensor":
            return sum(trainable)
        if per == "modality":
            return len({k for k, yes in zip(self.owners, trainable, strict=True) if yes})
        return 1

    def gather(self) -> Gradients:
        """The gradients of this step; parameters without one are left out."""
        grads = [p.grad for p in self.parameters]
        here = tuple([g is not None for g in grads])
        tensors = [g for g in grads if g is not None]
        # Gradients have their parameter's dtype and device, and a model moves as a whole.
        home = (tensors[0].dtype, tensors[0].device) if tensors else None
        plan = self._plans.get((here, home))
        if plan is None:
            plan = self._plans[here, home] = Plan(self, here, tensors)
        return Gradients(plan, tensors)


class Block(NamedTuple):
    """Tensors that one multiplication covers: same unit, device and dtype.

    Args:
        unit: which coefficient; EACH for one per tensor.
        positions: which of this step's tensors.
        device: where they are.
        dtype: in which precision the coefficient multiplies them (float32 for half precision).
    """

    unit: int
    positions: list[int]
    device: torch.device
    dtype: torch.dtype


class Plan:
    """What is known of a step from the set of parameters that have a gradient. Built once for each set."""

    def __init__(self, layout: Layout, here: tuple[bool, ...], tensors: list[Tensor]) -> None:
        present = [i for i, yes in enumerate(here) if yes]
        for i, g in zip(present, tensors, strict=True):
            if g.layout != torch.strided:
                raise UserError(
                    "clipping needs dense gradients",
                    given=f"{layout.names[i]}, {g.layout}",
                    remedy="Build the embedding with sparse=False.",
                )
        n = len(here)
        kinds = [(g.device, g.dtype) for g in tensors]
        dtypes = {g.dtype for g in tensors} or {p.dtype for p in layout.parameters}
        self.scopes = layout.scopes
        # Norms are summed in float32 at least: half precision overflows at 65504.
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.cast = None if dtypes == {self.dtype} else self.dtype
        device = kinds[0][0] if kinds else next((p.device for p in layout.parameters), None)
        self.device = device or torch.device("cpu")
        self.scattered = len({d for d, _ in kinds}) > 1
        # The few numbers per tensor are combined in float64: squares neither overflow nor vanish.
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.index = (
            None
            if len(present) == n
            else torch.tensor(present, device=self.device, dtype=torch.long)
        )
        rows = [[True] * n, *([o == k for o in layout.owners] for k in range(len(layout.scopes)))]
        sizes = [0] * n
        for i, g in zip(present, tensors, strict=True):
            sizes[i] = g.numel()
        counts = [sum(s for s, yes in zip(sizes, row, strict=True) if yes) for row in rows]
        self.member = torch.tensor(rows, device=self.device, dtype=torch.bool)  # [1 + S, N]
        self.sizes = torch.tensor(sizes, device=self.device, dtype=self.wide)  # [N]
        self.empty = torch.zeros(0, device=self.device, dtype=self.dtype)
        self.nothing = torch.zeros_like(self.sizes)
        self.owners = torch.tensor(layout.owners, device=self.device, dtype=torch.long)  # [N]
        groups: list[list[int]] = [[] for _ in layout.scopes]
        for position, i in enumerate(present):
            groups[layout.owners[i]].append(position)
        self.groups = tuple(groups)  # positions of this step's tensors, by scope
        several = range(len(layout.scopes))
        self.scope_member = torch.tensor(
            [[True for _ in several], *([i == k for i in several] for k in several)],
            device=self.device,
            dtype=torch.bool,
        )  # [1 + S, S]
        # At least 1, so that a share of nothing is 0.
        self.elements = torch.tensor(
            [max(c, 1) for c in counts], device=self.device, dtype=self.wide
        )
        owners = [layout.owners[i] for i in present]
        self.blocks: dict[Per, list[Block]] = {
            "global": _blocks(kinds, [0] * len(present)),
            "modality": _blocks(kinds, owners),
            "tensor": _blocks(kinds, [EACH] * len(present)),
        }
        self._constants: dict[tuple[float, ...], Tensor] = {}

    def norms(self, tensors: list[Tensor], p: float = 2.0) -> Tensor:
        """The p-norm of each of some tensors, [len(tensors)]; one pass over their elements."""
        if not tensors:
            return self.gather([])
        return self.gather(list(_foreach_norm(tensors, p, dtype=self.cast)))

    def gather(self, numbers: list[Tensor]) -> Tensor:
        """0-dim tensors as one [len(numbers)], on the plan's device."""
        if not numbers:
            return torch.zeros(0, device=self.device, dtype=self.wide)
        if self.scattered:
            numbers = [n.to(self.device, non_blocking=True) for n in numbers]
        return torch.stack(numbers).to(self.wide)

    def constant(self, *values: float) -> Tensor:
        """These numbers as a tensor on the device; the same one at every step, so do not write to it."""
        if values not in self._constants:
            self._constants[values] = torch.tensor(values, device=self.device, dtype=self.wide)
        return self._constants[values]


def _blocks(kinds: list[tuple[torch.device, torch.dtype]], units: list[int]) -> list[Block]:
    """Positions grouped by unit, device and dtype, in order of first appearance."""
    groups: dict[tuple[int, torch.device, torch.dtype], list[int]] = {}
    for position, ((device, dtype), unit) in enumerate(zip(kinds, units, strict=True)):
        groups.setdefault((unit, device, dtype), []).append(position)
    return [
        # A coefficient rounded to half precision would be wrong by up to 3 % at 1e-6.
        Block(unit, positions, device, torch.float64 if dtype == torch.float64 else torch.float32)
        for (unit, device, dtype), positions in groups.items()
    ]


class Gradients:
    """The gradients of one step: reads their norms, multiplies them in place.

    Args:
        plan: what is known from which parameters have a gradient.
        tensors: those gradients, in the plan's order.
    """

    __slots__ = ("plan", "tensors")

    def __init__(self, plan: Plan, tensors: list[Tensor]) -> None:
        self.plan = plan
        self.tensors = tensors

    def norms(self, p: float = 2.0) -> Tensor:
        """The p-norm of each parameter's gradient [N]; 0 where it has none. One pass."""
        plan = self.plan
        norms = plan.norms(self.tensors, p)
        if plan.index is None:
            return norms
        return torch.zeros_like(plan.sizes).index_copy_(0, plan.index, norms)

    def copies(self) -> list[Tensor]:
        """A copy of each scope's gradient in the precision of norms, S of [elements]."""
        plan = self.plan
        out: list[Tensor] = []
        for positions in plan.groups:
            flat = [self.tensors[i].reshape(-1) for i in positions]
            if plan.cast is not None or plan.scattered:
                flat = [t.to(plan.device, plan.dtype, non_blocking=True) for t in flat]
            out.append(torch.cat(flat) if flat else plan.empty)
        return out

    def join(self, norms: Tensor, p: float) -> Tensor:
        """p-norms of tensors [N] -> p-norms of everything and of each scope [1 + S]."""
        # Selected, not multiplied by 0 and 1: one scope's inf must not turn the others into NaN.
        chosen = torch.where(self.plan.member, norms, 0.0)
        if not chosen.numel():
            return chosen.sum(-1)
        return torch.linalg.vector_norm(chosen, p, dim=-1)

    def multiply(self, coefficients: Tensor, per: Per) -> None:
        """Multiply in place; coefficients: [1] or more (global), [S] (modality), [N] (tensor)."""
        index = self.plan.index
        if per == "tensor" and index is not None:
            coefficients = coefficients.index_select(0, index)
        for unit, positions, device, dtype in self.plan.blocks[per]:
            tensors = [self.tensors[i] for i in positions]
            if unit == EACH:
                each = coefficients.to(device, dtype, non_blocking=True).unbind()
                _foreach_mul_(tensors, [each[i] for i in positions])
            else:
                one = coefficients[unit].to(device, dtype, non_blocking=True)
                _foreach_mul_(tensors, one)
