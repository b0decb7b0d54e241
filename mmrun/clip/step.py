"""The gradients of one step: their norms are read, they are multiplied or changed in place, and it is told what was done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, _foreach_mul_  # pyright: ignore[reportPrivateImportUsage]

from mmrun.clip.buckets import change, compare
from mmrun.clip.layout import EACH, PLAIN, Per, Plan, as_size, moved
from mmrun.clip.shards import local
from mmrun.clip.stats import Stats


class InForce(NamedTuple):
    """What a law held the gradients to.

    Args:
        threshold: ``Stats.threshold`` [1 + S].
        payer: ``Stats.payer`` [S].
        skipped: whether the whole step is to be left out, 0-dim Bool; None where a law never asks for that.
    """

    threshold: Tensor
    payer: Tensor
    skipped: Tensor | None = None


class Gradients:
    """The gradients of one step, or whatever else is clipped as if it were one.

    A multiplication is only noted, and composes with the next one: norms are homogeneous, so that any number of laws
    that scale take one pass to read and one to write. A law that changes elements calls ``open``.

    Args:
        plan: what is known from which parameters have a gradient.
        tensors: those gradients, in the plan's order; changed in place.
        weights: what they are gradients of, in the same order; by default the parameters as they are.
    """

    def __init__(
        self, plan: Plan, tensors: Sequence[Tensor], weights: Sequence[Tensor] | None = None
    ) -> None:
        self.plan = plan
        self._table_rows = [_rows_of_sparse(g) for g in tensors] if plan.sparse else None
        values = [_values(g) for g in tensors] if plan.sparse else tensors
        self.tensors = [local(g) for g in values] if plan.shards is not None else list(values)
        self._weights = weights
        self._norms: dict[float, Tensor] = {}  # of the tensors as they lie there [N]
        self._row_norms: dict[float, Tensor] = {}  # the same of their rows [R]
        self._per: Per = "global"  # of the multiplication that is noted
        self._factors: Tensor | None = None  # its coefficients [U]
        self._before: list[Tensor] | None = None  # what the tensors were, once elements are changed
        self._sums: list[Tensor] | None = None  # what ``change`` told
        self._keep = False
        self._finite: Tensor | None = None

    # Reading

    @cached_property
    def raw(self) -> Tensor:
        """L2 norms as they came [N]; 0 where there is no gradient. Read before anything is written."""
        return self._measured(2.0)

    @cached_property
    def total(self) -> Tensor:
        """The sum of the norms as they came, 0-dim: not finite where an element of any gradient is not."""
        return self.raw.sum()

    def teaches(self, norms: Tensor) -> Tensor:
        """Which units, of their norms as they are by now, a law learns from: Bool.

        The one rule for what is remembered: no law learns from a step in which a gradient came that was not finite,
        whatever a policy made of it since; nor from a unit whose norm is 0 or not finite.
        """
        return usable(norms) & torch.isfinite(self.total)

    def norms(self, p: float = 2.0) -> Tensor:
        """The p-norm of each parameter's gradient as it is by now [N]; 0 where it has none. One pass at most."""
        if self._factors is None:
            return self._measured(p)
        if self._per == "unit":
            return self.plan.of_rows(self._measured_rows(p) * self._factors, p)
        return self._measured(p) * self._noted()

    def unit_norms(self, per: Per, p: float = 2.0) -> Tensor:
        """p-norms of the units of a granularity [U]; 0 where there is no gradient."""
        if per == "tensor":
            return self.norms(p)
        if per == "unit":
            rows = self._measured_rows(p)
            return rows if self._factors is None else rows * self._noted_for_rows()
        joint = self.joint(p)
        return joint[1:] if per == "modality" else joint[:1]

    def joint(self, p: float = 2.0) -> Tensor:
        """p-norms of everything and of each scope [1 + S]."""
        return self.plan.join(self.norms(p), "tensor", p)

    def weight_norms(self, per: Per) -> Tensor:
        """L2 norms of the weights of the units of a granularity [U].

        Trainable weights count also where they have no gradient at this step, so that a bound made of them does not
        move with a modality that is missing; but not rows (``unit``), nor weights that were given beside an update.
        """
        plan = self.plan
        if per == "unit":
            weights = self._weights
            if weights is None:
                weights = [plan.layout.parameters[i].detach() for i in plan.present]
            return self._rows([local(w) for w in weights], 2.0)
        if self._weights is not None:
            norms = self._placed(plan.norms([local(w) for w in self._weights]), 2.0)
        else:
            every = [local(p.detach()) for p in plan.layout.parameters]
            norms = torch.where(plan.trainable, plan.norms(every), 0.0)
            if plan.shards is not None:
                norms = plan.shards.of_tensors(norms, 2.0)
        if per == "tensor":
            return norms
        joint = plan.join(norms, "tensor", 2.0)
        return joint[1:] if per == "modality" else joint[:1]

    def measure(self, tensors: Sequence[Tensor], p: float = 2.0) -> Tensor:
        """p-norms [N] of other tensors that lie as this step's do, in their order; 0 where there is no gradient."""
        return self._placed(self.plan.norms(list(tensors), p), p)

    def each(self, numbers: Tensor) -> list[Tensor]:
        """Numbers of parameters [N] -> 0-dim, one for each of this step's tensors, where that lies."""
        plan, found = self.plan, numbers.unbind()
        pairs = zip(plan.present, plan.kinds, strict=True)
        return [found[i].to(device, non_blocking=True) for i, (device, _) in pairs]

    def unit_sizes(self, per: Per) -> Tensor:
        """Number of elements of each unit [U]; 0 where there is no gradient."""
        plan = self.plan
        if per == "unit":
            return plan.row_sizes
        if per == "tensor":
            return plan.sizes
        joint = plan.join(plan.sizes, "tensor", 1.0)
        return joint[1:] if per == "modality" else joint[:1]

    def _measured(self, p: float) -> Tensor:
        if p in self._row_norms and p not in self._norms:
            self._norms[p] = self.plan.of_rows(self._row_norms[p], p)
        if p not in self._norms:
            self._norms[p] = self._placed(self.plan.norms(self.tensors, p), p)
        return self._norms[p]

    def _measured_rows(self, p: float) -> Tensor:
        if p not in self._row_norms:
            self._row_norms[p] = self._rows(self.tensors, p)
        return self._row_norms[p]

    def _placed(self, norms: Tensor, p: float) -> Tensor:
        """Norms of this step's tensors, or of their parts in this process [n] -> of all parameters [N]."""
        plan = self.plan
        if plan.index is not None:
            norms = torch.zeros_like(plan.sizes).index_copy_(0, plan.index, norms)
        return norms if plan.shards is None else plan.shards.of_tensors(norms, p)

    def _rows(self, tensors: Sequence[Tensor], p: float) -> Tensor:
        """p-norms of the rows of this step's tensors, among those of all parameters [R]."""
        plan = self.plan
        # One call for all that are one unit; on a CPU calls are what many small tensors cost.
        whole = iter(plan.norms([tensors[k] for k in plan.single], p).split(1))
        uneven = plan.shards is not None or plan.sparse
        found: list[Tensor] = []
        for k, n_rows, over, _ in plan.parts:
            if k is None:
                found.append(plan.filled(0.0, n_rows))
                continue
            if over is None:
                norms = next(whole)
            elif uneven and not tensors[k].numel():  # a shard, or a sparse gradient, without any
                table = self._table_row(k)
                norms = plan.filled(0.0, n_rows if table is None else len(table))
            elif p in PLAIN:
                norms = torch.linalg.vector_norm(tensors[k], p, dim=over, dtype=plan.cast)
            else:
                wide = tensors[k].to(plan.dtype)
                sizes = as_size(wide.abs().amax(dim=over, keepdim=True))
                norms = torch.linalg.vector_norm(wide / sizes, p, dim=over, dtype=torch.float64)
                norms = (norms * sizes.reshape(norms.shape)).to(plan.dtype)
            if uneven or plan.scattered:
                norms, table = moved(norms, plan.device, plan.wide), self._table_row(k)
                if table is not None and len(norms) != n_rows:
                    norms = plan.filled(0.0, n_rows).index_copy_(0, table, norms)
            found.append(norms)
        rows = torch.cat(found).to(plan.wide) if found else plan.filled(0.0, 0)
        return rows if plan.shards is None else plan.shards.of_units(rows, p)

    @property
    def sparse(self) -> list[bool]:
        """Which of this step's tensors hold but some rows of a table."""
        return [self._table_row(k) is not None for k in range(len(self.tensors))]

    def _table_row(self, k: int) -> Tensor | None:
        """Which rows of its table a sparse gradient holds; None for a dense one."""
        return None if self._table_rows is None else self._table_rows[k]

    # Writing

    def multiply(self, factors: Tensor, per: Per) -> None:
        """Multiply by a coefficient for each unit [U], in the precision that multiplies."""
        self._check_alone()
        if self._factors is None:
            self._per, self._factors = per, factors
        elif per == self._per:
            self._factors = self._factors * factors
        elif "unit" in (per, self._per):
            noted = self._noted_for_rows()
            self._factors = noted * self.plan.expand_to_rows(factors, per)
            self._per = "unit"
        else:
            expand = self.plan.expand
            self._factors = expand(self._factors, self._per) * expand(factors, per)
            self._per = "tensor"

    def open(self) -> list[Tensor]:
        """The tensors, for changing their elements in place. What they were is kept until ``stats``."""
        self._check_alone()
        if self._before is None:
            _ = self.raw
            self._before = [g.clone(memory_format=torch.contiguous_format) for g in self.tensors]
        self._write()
        return self.tensors

    def change(self, how: Callable[[list[Tensor]], None]) -> None:
        """Change each element by a function of itself alone, which is given some tensors of one dtype at a time.

        Faster than ``open``: what an element was is kept no longer than it takes to compare.
        """
        together = self._keep or self._before is not None or self._factors is not None
        if together or not all(g.is_contiguous() for g in self.tensors):
            for g in self.open():
                how([g])
            return
        self._check_alone()
        measured = "raw" in self.__dict__
        flat = [g.view(-1) for g in self.tensors]
        self._sums = change(self.plan, flat, how, squares=not measured)
        self._norms.clear()
        self._row_norms.clear()

    def keep(self) -> None:
        """Several laws will change these gradients: what they were must outlive the first."""
        self._keep = True

    def _check_alone(self) -> None:
        if self._sums is not None:
            raise RuntimeError("keep() comes before the first of several laws")

    def void(self, finite: Tensor, *, left_out: bool = False) -> None:
        """Make everything zero unless ``finite`` (0-dim Bool); with ``left_out`` nobody will read it where it is not."""
        self._finite = finite
        spoilt = ~finite
        for g in () if left_out else self.tensors:
            g.masked_fill_(moved(spoilt, g.device), 0.0)
        self._norms = {2.0: torch.where(finite, self.raw, 0.0)}

    def mend(self, finite: Tensor) -> None:
        """Make each element zero that is not finite; ``finite`` (0-dim Bool): whether there is none."""
        self._finite = finite
        for g in self.tensors:
            g.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._norms.clear()

    def _noted(self) -> Tensor:
        """The coefficients of all parameters [N]; or [1], which broadcasts: on a CPU a call costs what 1000 numbers do."""
        assert self._factors is not None
        one = self._per == "global"
        return self._factors if one else self.plan.expand(self._factors, self._per)

    def _noted_for_rows(self) -> Tensor:
        assert self._factors is not None
        return self.plan.expand_to_rows(self._factors, self._per)

    def _write(self) -> None:
        """Carry out the noted multiplication; what was measured does not hold any more."""
        factors, self._factors = self._factors, None
        self._norms.clear()
        self._row_norms.clear()
        if factors is None:
            return
        if self._per == "unit":
            self._multiply_rows(factors)
            return
        plan = self.plan
        if self._per == "tensor" and plan.index is not None:
            factors = factors.index_select(0, plan.index)
        for unit, positions, device, dtype in plan.blocks[self._per]:
            every = len(positions) == len(self.tensors)
            tensors = self.tensors if every else [self.tensors[i] for i in positions]
            if unit == EACH:
                each = moved(factors, device, dtype).unbind()
                _foreach_mul_(tensors, [each[i] for i in positions])
            else:
                _foreach_mul_(tensors, moved(factors[unit], device, dtype))

    def _multiply_rows(self, factors: Tensor) -> None:
        plan, single = self.plan, list[Tensor]()
        for (k, _, over, shape), each in zip(
            plan.parts, factors.split(list(plan.layout.rows)), strict=True
        ):
            if k is None:
                continue
            g, table = self.tensors[k], self._table_row(k)
            if plan.scattered:
                each = moved(each, g.device)
            if over is None:
                single.append(each.view(()))
            else:
                g.mul_((each if table is None else each.index_select(0, table)).view(shape))
        if single:
            _foreach_mul_([self.tensors[k] for k in plan.single], single)

    # Telling

    def stats(self, in_force: InForce) -> Stats:
        """Carry out what is noted, and say what became of the gradients."""
        plan, member = self.plan, self.plan.member
        if self._before is not None or self._sums is not None:
            self._write()
            raw, clipped, inner, changed = self._of_pieces()
            member = plan.pieces_member
        else:
            raw = self.raw
            clipped, inner, changed = self._scaled(raw)
        self._write()
        if self._finite is not None:  # what a policy did is not the law's doing
            changed = torch.where(self._finite, changed, 0.0)
        return Stats(
            raw=raw,
            clipped=clipped,
            inner=inner,
            changed=changed,
            threshold=in_force.threshold,
            payer=in_force.payer,
            elements=plan.elements,
            member=member,
            scopes=plan.scopes,
            dtype=plan.dtype,
        )

    def _scaled(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(clipped, inner, changed) of each parameter [N], where they follow from norms and coefficients."""
        plan = self.plan
        if self._factors is None:
            clipped = self.norms()
            return clipped, raw * clipped, torch.zeros_like(raw)
        if self._per == "unit":
            rows, factors = self._measured_rows(2.0), self._factors
            changed = plan.row_sizes * rows.sign() * (factors != 1)
            return (
                plan.of_rows(rows * factors, 2.0),
                plan.sum_rows(rows * rows * factors),
                plan.sum_rows(changed),
            )
        factors, clipped = self._noted(), self.norms()
        return clipped, raw * clipped, plan.sizes * raw.sign() * (factors != 1)

    def _of_pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(raw, clipped, inner, changed) of each piece [K], where elements were changed one by one."""
        plan, sums = self.plan, self._sums
        if sums is None:
            assert self._before is not None
            sums = compare(
                plan, *([g.reshape(-1) for g in t] for t in (self._before, self.tensors))
            )
        if plan.shards is not None:
            sums = list(plan.shards.of_tensors(torch.stack(sums), 1.0))
        squares, inner, changed, *rest = sums
        if rest:
            raw = rest[0].sqrt()
        elif plan.shards is None:
            raw = plan.join(self.raw, "tensor", 2.0)[1:]
        else:
            raw = self.raw
        return raw, squares.sqrt(), inner, changed


def usable(norms: Tensor) -> Tensor:
    """Which norms say something, Bool: those above 0 that are finite."""
    return (norms > 0) & (norms < torch.inf)


def _values(g: Tensor) -> Tensor:
    """The numbers of a gradient, as they lie in it: also of a sparse one."""
    return g if g.layout == torch.strided else g._values()


def _rows_of_sparse(g: Tensor) -> Tensor | None:
    return None if g.layout == torch.strided else g._indices()[0]
