"""What a law is bound to: parameters by scope, and what is known of the set of them that has a gradient.

Everything that does not change from step to step (which tensor belongs to which scope, how many
elements it has) is worked out once per set of parameters that have a gradient, and kept.

Shape legend: N parameters, S scopes, R rows (output units of all parameters), U units of a granularity. In [1 + S] and
[1 + S, N] row 0 is everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import is_
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

# One call for many tensors, as in torch.nn.utils.clip_grad: the fastest way measured, on a CPU too.
from torch import Tensor, _foreach_norm, nn  # pyright: ignore[reportPrivateImportUsage]

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.recent import Recent
from mmrun.clip.shards import Rows, Shards, check_placed, is_spread, local
from mmrun.errors import UserError

Scopes = Mapping[str, Mapping[str, nn.Parameter]]
Per = Literal["global", "modality", "tensor", "unit"]
EACH = -1
PLAIN = (1.0, 2.0, math.inf)  # orders of norms whose powers stay in range
PLANS = 64  # sets of gradients whose plans are kept: with layers dropped at random, each step may have another set


class Layout:
    """Parameters by scope, each once.

    Args:
        scopes: {scope: {parameter name: Parameter}}; a scope may be empty. A parameter under two names of
            one scope counts once, under the first; one without elements is left out, and a complex one that is frozen.
        anatomy: what the parameters are within their modules.

    Raises:
        UserError: a parameter is in two scopes, or is complex and has a gradient, or can have one.
    """

    def __init__(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        self.scopes: tuple[str, ...] = tuple(scopes)
        self.anatomy = anatomy
        # Themselves, not their ids: in a copy of this layout, ids are those of other parameters.
        self._given = [list(named.values()) for named in scopes.values()]
        parameters: list[nn.Parameter] = []
        names: list[str] = []
        owners: list[int] = []
        seen: dict[int, tuple[int, str]] = {}
        self._complex: list[tuple[str, nn.Parameter]] = []
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
                    self._complex.append((f"{scope}/{name}", parameter))
                    continue
                parameters.append(parameter)
                names.append(f"{scope}/{name}")
                owners.append(k)
        self.parameters: tuple[nn.Parameter, ...] = tuple(parameters)
        # "<scope>/<parameter name>": the keys of a law's state.
        self.names: tuple[str, ...] = tuple(names)
        self.owners: tuple[int, ...] = tuple(owners)  # index of each parameter's scope, ascending
        self._plans: Recent[object, Plan] = Recent(PLANS)
        self._check_real()

    def _check_real(self) -> None:
        for name, parameter in self._complex:
            if parameter.requires_grad or parameter.grad is not None:
                raise UserError(
                    "clipping works on real gradients",
                    given=f"{name}, {parameter.dtype}",
                    remedy="Hold complex weights as real tensors (torch.view_as_real).",
                )

    def axis(self, parameter: nn.Parameter) -> int | None:
        """The dimension along which a parameter's units lie; None where it is one unit as a whole."""
        return self.anatomy.axes.get(parameter, 0) if parameter.ndim > 1 else None

    def slots(self, per: Per) -> list[tuple[str, int]]:
        """(name, number of units) of what has units: everything, scopes, or parameters, in the order of [U]."""
        if per == "global":
            return [("", 1)]
        if per == "modality":
            return [(scope, 1) for scope in self.scopes]
        if per == "tensor":
            return [(name, 1) for name in self.names]
        return list(zip(self.names, self.rows, strict=True))

    def spread_slots(self, per: Per) -> dict[str, Rows]:
        """Those of ``slots`` of which other processes may have other units."""
        if per != "unit":
            return {}
        axes = map(self.axis, self.parameters)
        every = zip(self.names, self.parameters, axes, strict=True)
        return {name: Rows(p, axis) for name, p, axis in every if axis is not None and is_spread(p)}

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Units that each parameter has [N]; of a sharded one, those that lie here, whole or in part."""
        return tuple(self._rows_of(p, local(p)) for p in self.parameters)

    @cached_property
    def all_rows(self) -> tuple[int, ...]:
        """Units that each parameter has [N], over all processes."""
        return tuple(self._rows_of(p, p) for p in self.parameters)

    def _rows_of(self, parameter: nn.Parameter, tensor: Tensor) -> int:
        axis = self.axis(parameter)
        return 1 if axis is None else tensor.shape[axis]

    @cached_property
    def is_spread(self) -> bool:
        """Whether a parameter is spread over processes."""
        return any(map(is_spread, self.parameters))

    @cached_property
    def sizes(self) -> np.ndarray:
        """Elements that each parameter has [N]."""
        return np.array([p.numel() for p in self.parameters], dtype=np.int64)

    @cached_property
    def member(self) -> np.ndarray:
        """Which parameters make up everything and each scope, Bool [1 + S, N]."""
        owners = np.array(self.owners, dtype=np.int64)
        of_scopes = owners[None, :] == np.arange(len(self.scopes))[:, None]
        return np.concatenate((np.ones_like(owners, dtype=bool)[None, :], of_scopes))

    @cached_property
    def spans(self) -> list[tuple[list[int] | None, list[int]]]:
        """``over`` and ``shape`` of ``Part``, of each parameter [N]."""
        found: list[tuple[list[int] | None, list[int]]] = []
        for parameter in self.parameters:
            axis, dims = self.axis(parameter), range(parameter.ndim)
            over = None if axis is None else [d for d in dims if d != axis]
            found.append((over, [] if axis is None else [-1 if d == axis else 1 for d in dims]))
        return found

    @property
    def requires_grad(self) -> list[bool]:
        """Which parameters [N] are trainable by now: one that was frozen need not stay so."""
        return [p.requires_grad for p in self.parameters]

    def open_units(self, open_: Sequence[bool], per: Per) -> list[bool]:
        """Which units [U] can have a gradient, where these parameters [N] can."""
        if per == "global":
            return [True]
        if per == "modality":
            owners = {k for k, one in zip(self.owners, open_, strict=True) if one}
            return [k in owners for k in range(len(self.scopes))]
        if per == "tensor":
            return list(open_)
        return [one for one, rows in zip(open_, self.rows, strict=True) for _ in range(rows)]

    def holds(self, scopes: Scopes) -> bool:
        """Whether these are the scopes and parameters that it was made of."""
        if tuple(scopes) != self.scopes:
            return False
        pairs = zip(scopes.values(), self._given, strict=True)
        return all(len(a) == len(b) and all(map(is_, a.values(), b)) for a, b in pairs)

    def gather(self) -> tuple[Plan, list[Tensor]]:
        """The gradients of this step, and what is known of those that have one."""
        plan, tensors = self.plan([p.grad for p in self.parameters])
        if plan.sparse:
            for k, i in enumerate(plan.present):
                self.parameters[i].grad = tensors[k] = _coalesced(tensors[k], self.names[i])
        return plan, tensors

    def plan(self, grads: Sequence[Tensor | None]) -> tuple[Plan, list[Tensor]]:
        """What is known of a step at which the parameters have these gradients, or none; and those that there are."""
        self._check_real()
        tensors = [g for g in grads if g is not None]
        every = len(tensors) == len(grads)  # nearly always; hashing 130 booleans takes its time
        # Of those without a gradient, some may be trainable by now that were not.
        here = None if every else tuple([g is not None for g in grads] + self.requires_grad)
        # A part of a model may change its precision, or move; and an embedding's gradient may be
        # sparse at one step and dense at the next.
        key = (
            here,
            _few([g.dtype for g in tensors]),
            _few([g.get_device() for g in tensors]),
            tensors[0].device if tensors else None,
            _few([g.layout for g in tensors]),
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan(self, [g is not None for g in grads], tensors)
        return plan, tensors


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


class Part(NamedTuple):
    """How the units of a parameter lie in its gradient.

    Args:
        k: which of this step's tensors it is; None where there is none.
        rows: number of units.
        over: the dimensions that a unit extends over; None where it is one unit as a whole.
        shape: of one number for each unit, so that it multiplies the gradient.
    """

    k: int | None
    rows: int
    over: list[int] | None
    shape: list[int]


class Plan:
    """What is known of a step from the set of parameters that have a gradient. Built once for each set."""

    def __init__(self, layout: Layout, here: Sequence[bool], tensors: list[Tensor]) -> None:
        self.layout = layout
        self.present = [i for i, yes in enumerate(here) if yes]
        n = len(here)
        # One that is frozen and has a gradient all the same is stepped with as others are.
        pairs = zip(layout.requires_grad, here, strict=True)
        self.open = tuple([one or yes for one, yes in pairs])  # can have a gradient [N]
        self.kinds = [(g.device, g.dtype) for g in tensors]
        dtypes = {g.dtype for g in tensors} or {p.dtype for p in layout.parameters}
        self.scopes = layout.scopes
        # Norms are summed in float32 at least: half precision overflows at 65504.
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.cast = None if dtypes == {self.dtype} else self.dtype
        device = self.kinds[0][0] if tensors else next((p.device for p in layout.parameters), None)
        self.device = device or torch.device("cpu")
        self.scattered = len({d for d, _ in self.kinds}) > 1
        self._uniform = len(set(self.kinds)) == 1
        # The few numbers per tensor are combined in float64: squares neither overflow nor vanish.
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.shards = None
        if layout.is_spread:
            for i, g in zip(self.present, tensors, strict=True):
                check_placed(g, layout.parameters[i], layout.names[i])
            axes = [layout.axis(p) for p in layout.parameters]
            self.shards = Shards(layout.parameters, axes, layout.rows, self.device)
        self.sparse = any(g.layout != torch.strided for g in tensors)
        self.index = (
            None
            if len(self.present) == n
            else torch.tensor(self.present, device=self.device, dtype=torch.long)
        )
        sizes = layout.sizes * np.array(here, dtype=np.int64)
        counts = np.where(layout.member, sizes, 0).sum(1)
        self.member = torch.tensor(layout.member, device=self.device)  # Bool [1 + S, N]
        self.sizes = torch.tensor(sizes, device=self.device, dtype=self.wide)  # [N]
        # At least 1, so that a share of nothing is 0.
        self.elements = torch.tensor(counts.clip(min=1), device=self.device, dtype=self.wide)
        self.empty = torch.zeros(0, device=self.device, dtype=self.dtype)
        self.owners = torch.tensor(layout.owners, device=self.device, dtype=torch.long)  # [N]
        groups: list[list[int]] = [[] for _ in layout.scopes]
        for position, i in enumerate(self.present):
            groups[layout.owners[i]].append(position)
        self.groups = tuple(groups)  # positions of this step's tensors, by scope
        several = range(len(layout.scopes))
        self.scope_member = torch.tensor(
            [[True for _ in several], *([i == k for i in several] for k in several)],
            device=self.device,
            dtype=torch.bool,
        )  # [1 + S, S]
        every = list(range(len(self.present)))
        self.blocks: dict[Per, list[Block]] = {
            "global": self._blocks(0, every),
            "modality": [b for k, its in enumerate(self.groups) for b in self._blocks(k, its)],
            "tensor": self._blocks(EACH, every),
        }
        self._constants: dict[int, tuple[Sequence[float], Tensor]] = {}
        self.no_payer = self.filled(1.0, len(self.scopes))
        # Where elements are changed one by one: what is measured as one. Shards are summed tensor by tensor.
        self.pieces, self.pieces_member = self.groups, self.scope_member
        if self.shards is not None:
            self.pieces = tuple([] if k is None else [k] for k in self.position)
            self.pieces_member = self.member

    def _blocks(self, unit: int, positions: list[int]) -> list[Block]:
        """Positions of one unit grouped by device and dtype, in order of first appearance."""
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        if not self._uniform:
            for k in positions:
                groups.setdefault(self.kinds[k], []).append(k)
        elif positions:
            groups[self.kinds[0]] = positions
        return [
            # A coefficient rounded to half precision would be wrong by up to 3 % at 1e-6.
            Block(unit, its, device, torch.float64 if dtype == torch.float64 else torch.float32)
            for (device, dtype), its in groups.items()
        ]

    @cached_property
    def position(self) -> list[int | None]:
        """Which of this step's tensors is each parameter's [N]."""
        at = dict(zip(self.present, range(len(self.present)), strict=True))
        return [at.get(i) for i in range(len(self.layout.parameters))]

    @cached_property
    def trainable(self) -> Tensor:
        """Which parameters can have a gradient, Bool [N]."""
        return torch.tensor(self.open, device=self.device, dtype=torch.bool)

    @cached_property
    def row_tensor(self) -> Tensor:
        """The parameter that each row belongs to [R]."""
        numbers = np.repeat(np.arange(len(self.layout.rows)), self.layout.rows)
        return torch.tensor(numbers, device=self.device, dtype=torch.long)

    @cached_property
    def row_sizes(self) -> Tensor:
        """Number of elements of each row [R]; 0 where there is no gradient."""
        sizes = [
            (p.numel() if axis is None else p.numel() // p.shape[axis]) * (at is not None)
            for p, at in zip(self.layout.parameters, self.position, strict=True)
            for axis in [self.layout.axis(p)]
        ]
        each = torch.tensor(sizes, device=self.device, dtype=self.wide)
        return each.index_select(0, self.row_tensor)

    @cached_property
    def parts(self) -> list[Part]:
        """How the units of each parameter lie in its gradient [N]."""
        layout = self.layout
        each = zip(self.position, layout.rows, layout.spans, strict=True)
        return [Part(k, rows, over, shape) for k, rows, (over, shape) in each]

    @cached_property
    def single(self) -> list[int]:
        """Which of this step's tensors are one unit as a whole."""
        return [part.k for part in self.parts if part.k is not None and part.over is None]

    def axis(self, k: int) -> int | None:
        """``Layout.axis`` of one of this step's tensors."""
        return self.layout.axis(self.layout.parameters[self.present[k]])

    def whole_axis(self, k: int, needs: str) -> int | None:
        """``axis``, for what ``needs`` a tensor's units whole.

        Raises:
            UserError: its units are spread over processes.
        """
        axis = self.axis(k)
        parameter = self.layout.parameters[self.present[k]]
        for each in getattr(parameter, "placements", ()) if self.shards is not None else ():
            if each.is_shard() and each.dim != axis:
                raise UserError(
                    f"{needs} needs output rows that lie in one process",
                    given=f"{self.layout.names[self.present[k]]}, {each}",
                    remedy="Shard along the output dimension, or clip by whole tensors.",
                )
        return axis

    def norms(self, tensors: list[Tensor], p: float = 2.0) -> Tensor:
        """The p-norm of each of some tensors, [len(tensors)]; one pass over their elements."""
        if not tensors:
            return self.gather([])
        if p == float("inf") and not all(t.numel() for t in tensors):
            # The largest of no elements: torch refuses it. A shard may have none, and a sparse gradient.
            tensors = [t if t.numel() else t.new_zeros(1) for t in tensors]
        if p == float("inf") and self.device.type == "cpu":
            # The same numbers, 17 times faster there; and no -0, by which one could divide.
            ends = [torch.aminmax(t) for t in tensors]
            least, most = (self.gather([e[k].to(self.dtype) for e in ends]) for k in (0, 1))
            return torch.maximum(-least, most).abs_()
        if p in PLAIN:
            return self.gather(list(_foreach_norm(tensors, p, dtype=self.cast)))
        # Other powers leave float32, and float64 too: of what the largest element is 1 of, they do not.
        sizes = as_size(self.norms(tensors, math.inf)).to(self.dtype)
        pairs = zip(tensors, sizes.unbind(), strict=True)
        scaled = [t.to(self.dtype) / moved(size, t.device) for t, size in pairs]
        return self.gather(list(_foreach_norm(scaled, p, dtype=torch.float64))) * sizes.to(
            self.wide
        )

    def gather(self, numbers: list[Tensor]) -> Tensor:
        """0-dim tensors as one [len(numbers)], on the plan's device."""
        if not numbers:
            return torch.zeros(0, device=self.device, dtype=self.wide)
        if self.scattered:
            numbers = [moved(n, self.device) for n in numbers]
        return torch.stack(numbers).to(self.wide)

    def constants(self, values: Sequence[float]) -> Tensor:
        """These numbers on the device; transferred once for each list, which the caller keeps and does not change."""
        kept, made = self._constants.get(id(values), (None, self.empty))
        if kept is not values:  # in a copy of this plan, ids are those of other lists
            made = torch.tensor(values, device=self.device, dtype=self.wide)
            self._constants[id(values)] = (values, made)  # the list lives on: so does its id
        return made

    def filled(self, value: float, size: int) -> Tensor:
        """[size] of one number, made on the device: no transfer."""
        return torch.full((size,), value, device=self.device, dtype=self.wide)

    def expand(self, units: Tensor, per: Per) -> Tensor:
        """Numbers of units [U], global, modality or tensor -> those of the parameters that they belong to [N]."""
        if per == "tensor":
            return units
        if per == "modality":
            return units.index_select(0, self.owners)
        return units[:1].expand(len(self.layout.parameters))

    def expand_to_rows(self, units: Tensor, per: Per) -> Tensor:
        """Numbers of units [U] -> those of the rows that belong to them [R]."""
        if per == "unit":
            return units
        return self.expand(units, per).index_select(0, self.row_tensor)

    def join(self, norms: Tensor, per: Per, p: float) -> Tensor:
        """p-norms of units [U], modality, tensor or unit -> p-norms of everything and of each scope [1 + S]."""
        if per == "unit":
            norms, per = self.of_rows(norms, p), "tensor"
        member = self.scope_member if per == "modality" else self.member
        # Selected, not multiplied by 0 and 1: one scope's inf must not turn the others into NaN.
        chosen = torch.where(member, norms, 0.0)
        if not chosen.numel():
            return chosen.sum(-1)
        if p in PLAIN:
            return torch.linalg.vector_norm(chosen, p, dim=-1)
        sizes = as_size(chosen.amax(-1))
        return torch.linalg.vector_norm(chosen / sizes.unsqueeze(-1), p, dim=-1) * sizes

    def of_rows(self, rows: Tensor, p: float) -> Tensor:
        """p-norms of rows [R] -> p-norms of parameters [N]."""
        here = torch.zeros_like(self.sizes).scatter_reduce_(
            0, self.row_tensor, rows.to(self.wide), "amax"
        )
        if p != math.inf:
            sizes = as_size(here)
            share = rows / sizes.index_select(0, self.row_tensor)
            here = self._sum_here(share**p) ** (1.0 / p) * sizes
        return here if self.shards is None else self.shards.over_units(here, p)

    def sum_rows(self, rows: Tensor) -> Tensor:
        """Numbers of rows [R], summed by parameter [N]."""
        here = self._sum_here(rows)
        return here if self.shards is None else self.shards.over_units(here, 1.0)

    def _sum_here(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(self.sizes).index_add_(0, self.row_tensor, rows.to(self.wide))


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device, without waiting; but to the CPU, where it would be read before it has arrived."""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")


def _few(each: list[Any]) -> Any:
    """A key for a list: the one thing that it nearly always holds, which is found sooner than a list is hashed."""
    return each[0] if each and each.count(each[0]) == len(each) else tuple(each)


def as_size(largest: Tensor) -> Tensor:
    """What to divide by so that the largest becomes 1; 1 where it is 0 or not finite."""
    return torch.where(torch.isfinite(largest) & (largest > 0), largest, 1.0).to(largest.dtype)


def _coalesced(gradient: Tensor, name: str) -> Tensor:
    """A gradient whose elements are each there once.

    Raises:
        UserError: it is sparse in another way than an embedding's.
    """
    if gradient.layout == torch.strided:
        return gradient
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise UserError(
            "clipping knows dense gradients, and sparse ones of embeddings",
            given=f"{name}, {gradient.layout}",
            remedy="Make it dense first.",
        )
    return gradient if gradient.is_coalesced() else gradient.coalesce()
