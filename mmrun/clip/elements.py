"""Laws that remember numbers for each element of the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.law import Law
from mmrun.clip.layout import Layout, Scopes
from mmrun.clip.shards import local
from mmrun.clip.step import Gradients
from mmrun.errors import UserError


class Elementwise(Law):
    """A law with a state of the gradient's own size, beside the numbers by unit that every law may keep.

    What is remembered starts at 0 and is in float32 at least. A parameter learns as a whole, as ``Gradients.teaches``
    says; a finite one that does not is clipped as if it did.
    """

    remembers: ClassVar[tuple[str, ...]]  # fields of each element

    def bind(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        """Bind to {scope: {parameter name: Parameter}}; afresh, so that state starts anew."""
        super().bind(scopes, anatomy)
        self._elements = Elements(self.layout, self.remembers)

    def remembered(self, gradients: Gradients) -> dict[str, list[Tensor]]:
        """{field: what it is for each of this step's tensors}; to be changed in place.

        Raises:
            UserError: a gradient is sparse.
        """
        refuse_sparse(gradients, self.algorithm)
        return self._elements.of(gradients)

    def state_dict(self) -> dict[str, Any]:
        """{field: {unit: its values}}, {field: {parameter: its elements' values}}; {} while nothing was learnt."""
        numbers = super().state_dict()
        if not self.is_bound:
            return numbers
        # All fields or none: numbers by unit are made at the first step, elements at a parameter's first gradient.
        none = {field: {} for field in self.remembers} if numbers else {}
        return {**none, **numbers, **self._elements.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state, as ``Law``. Parameters that it does not know start afresh.

        Raises:
            UserError: the state is another law's, or of tensors of other shapes.
        """
        if self.must_wait(state):
            return
        known = {*self.fields(), *self.remembers}
        if state and set(state) != known:
            raise UserError(
                "this state is of another clip law",
                given=", ".join(sorted(map(str, state))),
                remedy=f"This one keeps {', '.join(sorted(known))}.",
            )
        super().load_state_dict({k: v for k, v in state.items() if k not in self.remembers})
        self._elements.load_state_dict({k: v for k, v in state.items() if k in self.remembers})


class Elements:
    """Fields of each element as one tensor per parameter, kept by the parameter's name.

    Args:
        layout: the parameters.
        fields: names of what is kept.
    """

    def __init__(self, layout: Layout, fields: Sequence[str]) -> None:
        self.layout = layout
        self._tensors: dict[str, dict[str, Tensor]] = {field: {} for field in fields}

    def of(self, gradients: Gradients) -> dict[str, list[Tensor]]:
        """{field: what it is for each of this step's tensors}; made at a parameter's first gradient, of its kind."""
        for i, g in zip(gradients.plan.present, gradients.tensors, strict=True):
            name, dtype = self.layout.names[i], at_least_float32(g.dtype)
            for tensors in self._tensors.values():
                found = tensors.get(name)
                if found is None:
                    found = torch.zeros_like(g, dtype=dtype)
                tensors[name] = found.to(g.device, dtype)
        names = [self.layout.names[i] for i in gradients.plan.present]
        return {f: [tensors[name] for name in names] for f, tensors in self._tensors.items()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """{field: {parameter: its elements' values}}, copied; {} while nothing was learnt."""
        return {
            field: {name: tensor.clone() for name, tensor in tensors.items()}
            for field, tensors in self._tensors.items()
            if tensors
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up the values of the parameters that are here; one that the state does not know starts afresh.

        Raises:
            UserError: a tensor has another shape than its parameter.
        """
        shapes = {
            name: tuple(local(p).shape)
            for name, p in zip(self.layout.names, self.layout.parameters, strict=True)
        }
        taken: dict[str, dict[str, Tensor]] = {}
        for field in self._tensors:
            taken[field] = {}
            for name, value in state.get(field, {}).items():
                if name not in shapes:
                    continue
                if tuple(value.shape) != shapes[name]:
                    raise UserError(
                        f"the clip law's {field} is of another shape",
                        given=f"{name}: {tuple(value.shape)}",
                        remedy=f"It is {shapes[name]} here.",
                    )
                taken[field][name] = value.clone()
        self._tensors = taken


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """In which precision the elements of a gradient are worked with."""
    return torch.promote_types(dtype, torch.float32)


def largest(gradients: Gradients, bounds: Tensor) -> Tensor:
    """Bounds on the elements of parameters [N] -> the largest of everything and of each scope that has a gradient [1 + S]."""
    plan = gradients.plan
    joined = plan.join(torch.where(gradients.raw != 0, bounds, 0.0), "tensor", math.inf)
    return torch.where(joined > 0, joined, math.inf)


def refuse_sparse(gradients: Gradients, algorithm: str) -> None:
    """Raise UserError where a gradient has no number for each element."""
    plan = gradients.plan
    rows = zip(plan.present, gradients.sparse, strict=True)
    names = [plan.layout.names[i] for i, sparse in rows if sparse]
    if names:
        raise UserError(
            f"clip={algorithm} works on each element, and takes dense gradients only",
            given=", ".join(names),
            remedy="Build the embedding with sparse=False.",
        )
