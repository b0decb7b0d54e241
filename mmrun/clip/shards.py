"""Gradients that are spread over processes (FSDP2's DTensors): local shards, and sums over all of them.

Each tensor's part of a sum is worked out on the local shard, weighted by one over the number of processes that hold the
same part, and summed once over the mesh: a replicated parameter counts once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmrun.errors import UserError


class Shards:
    """How one step's tensors lie over processes. Every process of a mesh must call what this does.

    Args:
        tensors: the gradients, in order; plain tensors are taken to be equal everywhere.
        names: of their parameters, for messages.
        device: of the numbers that are summed.

    Raises:
        UserError: a gradient is a sum that has not been carried out yet.
    """

    def __init__(
        self, tensors: Sequence[Tensor], names: Sequence[str], device: torch.device
    ) -> None:
        self.meshes: list[tuple[Any, Tensor, Tensor]] = []  # mesh, positions [n], weights [n]
        found: dict[Any, tuple[list[int], list[float]]] = {}
        for k, g in enumerate(tensors):
            if not is_spread(g):
                continue
            g: Any
            if any(each.is_partial() for each in g.placements):
                raise UserError(
                    "this gradient has not been summed over processes yet",
                    given=f"{names[k]}, {g.placements}",
                    remedy="Clip after the reduction, or redistribute it first.",
                )
            copies = 1
            for axis, each in enumerate(g.placements):
                copies *= g.device_mesh.size(axis) if each.is_replicate() else 1
            positions, weights = found.setdefault(g.device_mesh, ([], []))
            positions.append(k)
            weights.append(1.0 / copies)
        for mesh, (positions, weights) in found.items():
            where = torch.tensor(positions, dtype=torch.long, device=device)
            self.meshes.append((mesh, where, torch.tensor(weights, device=device)))

    def total(self, parts: Tensor, *, largest: bool = False) -> Tensor:
        """Each tensor's part [..., n], over all its shards: summed, or the largest of them."""
        out = parts.clone()
        for mesh, where, weights in self.meshes:
            mine = parts.index_select(-1, where)
            if not largest:
                mine = mine * weights.to(mine.dtype)
            mine = mine.contiguous()
            for axis in range(mesh.ndim):
                op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
                dist.all_reduce(mine, op=op, group=mesh.get_group(axis))
            out.index_copy_(-1, where, mine)
        return out

    def norms(self, local: Tensor, p: float) -> Tensor:
        """p-norms of local shards [n] -> p-norms of whole tensors [n]."""
        if p == float("inf"):
            return self.total(local, largest=True)
        return self.total(local**p) ** (1.0 / p)


def is_spread(tensor: Tensor) -> bool:
    """Whether this is a DTensor; whose module takes 0.3 s to import, and is there when one is."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def part(tensor: Tensor) -> tuple[int, ...]:
    """Which part of a tensor lies in this process: equal where the same does; () of a plain tensor."""
    if not is_spread(tensor):
        return ()
    spread: Any = tensor
    here = spread.device_mesh.get_coordinate()
    return tuple(here[axis] for axis, p in enumerate(spread.placements) if not p.is_replicate())


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process; a plain tensor itself."""
    spread: Any = tensor
    return spread.to_local() if is_spread(tensor) else tensor
