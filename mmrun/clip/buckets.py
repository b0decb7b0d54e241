"""Elements that are changed one by one, and what became of them: bucket by bucket, so that all but the first look finds one in a cache.

Telling what became of each element takes several passes, and one over memory costs several over a cache. On a GPU
each operation costs more than its pass, so buckets are large there.

Shape legend: K pieces (``Plan.pieces``); what is told of each is summed over its elements, a before and b after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmrun.clip.layout import Plan

IN_CACHE = (
    2**17
)  # elements for each thread: the fastest of 2^13 to 2^18, which trade caches for calls
ON_GPU = 2**24  # up to which float32 counts exactly
ALIGNED = 16  # elements: 64 bytes in float32


class Bucket(NamedTuple):
    """Whole tensors, or a part of one.

    Args:
        piece: which of ``Plan.pieces``.
        positions: which of this step's tensors, all of one kind.
        part: of the single one's elements as they lie there; None for all.
    """

    piece: int
    positions: list[int]
    part: slice | None


def change(
    plan: Plan,
    tensors: Sequence[Tensor],
    how: Callable[[list[Tensor]], None],
    *,
    squares: bool,
) -> list[Tensor]:
    """Change each element in place, by a function of itself alone.

    Args:
        plan, tensors: this step's.
        how: is given some tensors of one kind, or parts of them, and changes them.
        squares: whether the sum of a^2 is wanted, too.

    Returns: [K] each: the sums of b^2 and of a b, the number of elements that differ, and the sum of a^2.
    """
    buckets = cut(plan, tensors)
    room, found = _room(plan, tensors, buckets), list[Tensor]()
    for bucket in buckets:
        parts = _parts(tensors, bucket)
        a = _copied(plan, parts, room[0])
        raw = [torch.dot(a, a)] if squares else []
        how(parts)
        found += _told(a, _flat(plan, parts, room[1])) + raw
    return _by_piece(plan, buckets, found, 3 + squares)


def compare(plan: Plan, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    """[K] each: the sums of b^2 and of a b, and the number of elements that differ. Uses ``before`` up."""
    buckets = cut(plan, after)
    room, found = _room(plan, after, buckets), list[Tensor]()
    for bucket in buckets:
        a = _flat(plan, _parts(before, bucket), room[0])
        found += _told(a, _flat(plan, _parts(after, bucket), room[1]))
    return _by_piece(plan, buckets, found, 3)


def _told(a: Tensor, b: Tensor) -> list[Tensor]:
    # Not from the norms of a, b and their difference: that cancels where much is cut off.
    sums = [torch.dot(b, b), torch.dot(a, b)]
    signs = a.sub_(b).sign_()  # 0 for NaN: an element that stays NaN did not change
    return [*sums, torch.dot(signs, signs)]


def cut(plan: Plan, tensors: Sequence[Tensor]) -> list[Bucket]:
    """The buckets that hold these tensors, in the order of the plan's pieces."""
    on_cpu = plan.device.type == "cpu"
    most = min(IN_CACHE * torch.get_num_threads(), ON_GPU) if on_cpu else ON_GPU
    found: list[Bucket] = []
    for piece, positions in enumerate(plan.pieces):
        open_: dict[object, tuple[list[int], int]] = {}  # by kind: positions, number of elements
        for k in positions:
            g, kind = tensors[k], plan.kinds[k]
            n = g.numel()
            if n > most and g.is_contiguous():
                size = -(-n // -(-n // most))
                size += -size % ALIGNED
                found += [Bucket(piece, [k], slice(i, i + size)) for i in range(0, n, size)]
                continue
            its, total = open_.get(kind, ([], 0))
            if its and total + n > most:
                found.append(Bucket(piece, its, None))
                its, total = [], 0
            its.append(k)
            open_[kind] = its, total + n
        found += [Bucket(piece, its, None) for its, _ in open_.values()]
    return found


def _parts(tensors: Sequence[Tensor], bucket: Bucket) -> list[Tensor]:
    if bucket.part is not None:
        return [tensors[bucket.positions[0]].view(-1)[bucket.part]]
    return [tensors[k] for k in bucket.positions]


def _room(plan: Plan, tensors: Sequence[Tensor], buckets: Sequence[Bucket]) -> Tensor:
    """Two rows, each with room for a bucket."""
    sizes = [
        sum(tensors[k].numel() for k in positions) if part is None else part.stop - part.start
        for _, positions, part in buckets
    ]
    most = max(sizes, default=0)
    return torch.empty((2, most + -most % ALIGNED), device=plan.device, dtype=plan.dtype)


def _copied(plan: Plan, parts: Sequence[Tensor], room: Tensor) -> Tensor:
    """The elements of some tensors, one after another in the precision of norms, in ``room``."""
    if len(parts) == 1:
        (part,) = parts
        return room[: part.numel()].copy_(part.reshape(-1), non_blocking=True)
    flat = [part.reshape(-1) for part in parts]
    if plan.scattered or plan.cast is not None:
        flat = [part.to(plan.device, plan.dtype, non_blocking=True) for part in flat]
    return torch.cat(flat, out=room[: sum(map(len, flat))])


def _flat(plan: Plan, parts: Sequence[Tensor], room: Tensor) -> Tensor:
    """The same, as they lie there where they do so already."""
    (part, *more) = parts
    if more or plan.scattered or plan.cast is not None or not part.is_contiguous():
        return _copied(plan, parts, room)
    return part.view(-1)


def _by_piece(
    plan: Plan, buckets: Sequence[Bucket], found: list[Tensor], fields: int
) -> list[Tensor]:
    """What was told of each bucket, in ``fields`` numbers -> the same of each piece [K]."""
    owners = [bucket.piece for bucket in buckets]
    counts = [owners.count(piece) for piece in range(len(plan.pieces))]
    of_piece = plan.gather(found).view(-1, fields).split(counts)
    sums = [each.sum(0) for each in of_piece]
    return list(torch.stack(sums).unbind(1)) if sums else [plan.gather([])] * fields
