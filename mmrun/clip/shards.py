"""Tensors that are spread over processes (FSDP2's DTensors): local shards, and sums over all of them.

Each part of a sum is worked out on the local shard and summed over those axes of the mesh along which a tensor is cut up;
where it is replicated the parts are equal, so that it counts once. The units of a tensor (its rows) may lie in one
process each, where it is cut along them, or be spread themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmrun.errors import UserError

Sums = list[tuple[Any, int, Tensor]]  # mesh, axis of it, positions that are summed over it


class Shards:
    """How N tensors lie over processes. Every process of a mesh must call what this does.

    Args:
        tensors: the parameters; plain ones are taken to be equal everywhere, their gradients too.
        axes: the dimension of each along which its units lie; None where it is one unit.
        rows: units of each that this process has, or has a part of; R together.
        device: of the numbers that are summed.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        axes: Sequence[int | None],
        rows: Sequence[int],
        device: torch.device,
    ) -> None:
        whole: dict[Any, list[int]] = {}
        units: dict[Any, list[int]] = {}
        parts: dict[Any, list[int]] = {}
        first = 0
        for i, (tensor, axis, n_rows) in enumerate(zip(tensors, axes, rows, strict=True)):
            for key, dim in _cuts(tensor):
                whole.setdefault(key, []).append(i)
                if dim == axis:
                    units.setdefault(key, []).append(i)
                else:
                    parts.setdefault(key, []).extend(range(first, first + n_rows))
            first += n_rows
        self._whole, self._units, self._parts = (
            [
                (*key, torch.tensor(found, dtype=torch.long, device=device))
                for key, found in d.items()
            ]
            for d in (whole, units, parts)
        )

    def of_tensors(self, local: Tensor, p: float) -> Tensor:
        """p-norms of local shards [..., N] -> of whole tensors."""
        return _joined(self._whole, local, p)

    def of_units(self, local: Tensor, p: float) -> Tensor:
        """p-norms of what is here of each unit [R] -> of whole units."""
        return _joined(self._parts, local, p)

    def over_units(self, local: Tensor, p: float) -> Tensor:
        """p-norms over the units of each tensor that are here [N] -> over all its units."""
        return _joined(self._units, local, p)


class Rows:
    """One number, or one row of them, for each unit of a tensor that is spread over processes.

    Args:
        tensor: it.
        axis: the dimension along which its units lie.
    """

    def __init__(self, tensor: Tensor, axis: int) -> None:
        self._tensor: Any = tensor
        self._axis = axis
        self.count = tensor.shape[axis]  # in all processes

    def whole(self, here: Tensor) -> Tensor:
        """Those of all units, from those that are here; every process must call it."""
        from torch.distributed.tensor import DTensor

        mesh, shape = self._tensor.device_mesh, torch.Size((self.count, *here.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        spread = DTensor.from_local(
            here.contiguous(), mesh, self._placements(), run_check=False, shape=shape, stride=stride
        )
        return spread.full_tensor().clone()  # one that is replicated would be the state itself

    def here(self, whole: Tensor) -> Tensor:
        """Those that are here, from those of all units."""
        from torch.distributed.tensor import distribute_tensor

        mesh = self._tensor.device_mesh
        spread = distribute_tensor(
            whole.to(mesh.device_type), mesh, self._placements(), src_data_rank=None
        )
        return spread.to_local()

    def _placements(self) -> list[Any]:
        from torch.distributed.tensor import Replicate, Shard

        placed = [
            each if not each.is_replicate() and each.dim == self._axis else Replicate()
            for each in self._tensor.placements
        ]
        return [Shard(0) if each.is_shard(self._axis) else each for each in placed]


def _cuts(tensor: Tensor) -> list[tuple[tuple[Any, int], int]]:
    """((mesh, axis of it), dimension of the tensor) wherever a tensor is cut up."""
    if not is_spread(tensor):
        return []
    spread: Any = tensor
    mesh = spread.device_mesh
    return [
        ((mesh, k), each.dim)
        for k, each in enumerate(spread.placements)
        # Not is_shard(): a dimension that two meshes cut up answers no.
        if not each.is_replicate() and mesh.size(k) > 1
    ]


def _joined(sums: Sums, local: Tensor, p: float) -> Tensor:
    if not sums:
        return local
    out, largest = local.clone(), p == float("inf")
    for mesh, axis, where in sums:
        mine = out.index_select(-1, where)
        mine = mine if largest else mine**p
        op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        dist.all_reduce(mine, op=op, group=mesh.get_group(axis))
        out.index_copy_(-1, where, mine if largest else mine ** (1.0 / p))
    return out


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


def check_placed(gradient: Tensor, parameter: Tensor, name: str) -> None:
    """Raise UserError unless a gradient lies over processes as its parameter does."""
    theirs: Any = parameter
    ours: Any = gradient
    if not is_spread(gradient) or (
        ours.device_mesh == theirs.device_mesh and ours.placements == theirs.placements
    ):
        return
    partial = any(each.is_partial() for each in ours.placements)
    raise UserError(
        "this gradient has not been summed over processes yet"
        if partial
        else "this gradient lies over processes in another way than its parameter",
        given=f"{name}, {ours.placements}",
        remedy="Clip after the reduction, or redistribute it first.",
    )
