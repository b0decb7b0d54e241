"""A law's state: one row of numbers for each unit, kept by the unit's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrun.clip.shards import Rows
from mmrun.errors import UserError


class Field(NamedTuple):
    """One number, or one row of them, per unit. ``fill`` is what it starts with."""

    fill: float = 0.0
    shape: tuple[int, ...] = ()


class Memory:
    """Fields of U units as tensors [U, ...] on the device.

    Args:
        slots: (name, number of units), as ``Layout.slots`` has them.
        fields: {name: Field}.
        spread: the slots of which other processes have other units.
    """

    def __init__(
        self,
        slots: Sequence[tuple[str, int]],
        fields: Mapping[str, Field],
        spread: Mapping[str, Rows] | None = None,
    ) -> None:
        self.slots = list(slots)
        self.spread = dict(spread or {})
        self.fields = dict(fields)
        self._tensors: dict[str, Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The fields [U, ...]; made at the first call, so that they are where the gradients are."""
        n = sum(count for _, count in self.slots)
        for name, field in self.fields.items():
            found = self._tensors.get(name)
            if found is None:
                found = torch.full((n, *field.shape), field.fill, device=device, dtype=dtype)
            self._tensors[name] = found.to(device, dtype)
        return self._tensors

    def keep(self, ok: Tensor, new: Mapping[str, Tensor]) -> None:
        """Take up new values where ``ok`` (Bool [U]); all others stay, bit for bit.

        As new tensors: what a law took from the old ones, its thresholds perhaps, stays what it was.
        """
        for name, value in new.items():
            old = self._tensors[name]
            where = ok.reshape([-1] + [1] * (old.ndim - 1))
            self._tensors[name] = torch.where(where, value, old)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """{field: {unit's name: its values}}, copied; {} while nothing was learnt.

        The same in every process, with the units of all of them; each must call it.
        """
        counts = [count for _, count in self.slots]
        return {
            field: {
                name: self.spread[name].whole(part) if name in self.spread else part.clone()
                for (name, _), part in zip(self.slots, tensor.split(counts), strict=True)
            }
            for field, tensor in self._tensors.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the values of the units that are here; a unit that the state does not know starts afresh.

        Raises:
            UserError: the state has other fields, or other shapes.
        """
        unknown = set(state) - set(self.fields)
        if unknown or (state and set(self.fields) - set(state)):
            raise UserError(
                "this state is of another clip law",
                given=", ".join(sorted(map(str, state))),
                remedy=f"This one keeps {', '.join(sorted(self.fields)) or 'none'}.",
            )
        self._tensors = {}
        for field, known in state.items():
            start = self.fields[field]
            parts: list[Tensor] = []
            for name, count in self.slots:
                spread = self.spread.get(name)
                shape = (spread.count if spread else count, *start.shape)
                value = known.get(name)
                if value is None:
                    value = torch.full(shape, start.fill, dtype=torch.float64)
                if tuple(value.shape) != shape:
                    raise UserError(
                        f"the clip law's {field} is of another shape",
                        given=f"{name or 'everything'}: {tuple(value.shape)}",
                        remedy=f"It is {shape} here.",
                    )
                parts.append(spread.here(value).cpu() if spread else value.cpu())
            if parts:
                self._tensors[field] = torch.cat(parts)
