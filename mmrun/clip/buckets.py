"""Elements that are changed one by one, and what became of them: bucket by bucket, so that all but the first look finds one in a cache.

Telling what became of each element takes several passes, and one over memory costs several over a cache. On a GPU
each operation costs more than its pass, so buckets are large there.

Shape legend: K pieces (``Plan.pieces``); what is told of each is summed over its elements, a before and b after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

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
        positions: which of this step's tensors, all of one dtype and device.
        part: of the single one's elements; None for all.
        size: number of elements.
    """

    piece: int
    positions: list[int]
    part: slice | None
    size: int

    def of(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """What it holds of some tensors, as views."""
        if self.part is not None:
            return [flat[self.positions[0]][self.part]]
        return [flat[k] for k in self.positions]


def change(
    plan: Plan, flat: Sequence[Tensor], how: Callable[[list[Tensor]], None], *, squares: bool
) -> list[Tensor]:
    """Change each element in place, by a function of itself alone.

    Args:
        plan: this step's.
        flat: this step's tensors, as views of one dimension.
        how: is given parts of some of them, of one dtype and device, and changes them.
        squares: whether the sum of a^2 is wanted, too.

    Returns: [K] each: the sums of b^2 and of a b, the number of elements that differ, and the sum of a^2.
    """
    buckets = cut(plan, flat)
    before, after = _room(plan, buckets)
    found: list[Tensor] = []
    for bucket in buckets:
        parts = bucket.of(flat)
        a = _copied(plan, bucket, parts, before)
        raw = [torch.dot(a, a)] if squares else []
        how(parts)
        found += _told(a, _joined(plan, bucket, parts, after)) + raw
    return _by_piece(plan, buckets, found, 3 + squares)


def compare(plan: Plan, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    """[K] each: the sums of b^2 and of a b, and the number of elements that differ. Uses ``before`` up.

    Args:
        plan: this step's.
        before: copies of this step's tensors, of one dimension.
        after: these tensors themselves, of one dimension.
    """
    buckets = cut(plan, after)
    earlier, later = _room(plan, buckets)
    found: list[Tensor] = []
    for bucket in buckets:
        a = _joined(plan, bucket, bucket.of(before), earlier)
        found += _told(a, _joined(plan, bucket, bucket.of(after), later))
    return _by_piece(plan, buckets, found, 3)


def _told(a: Tensor, b: Tensor) -> list[Tensor]:
    # Not from the norms of a, b and their difference: that cancels where much is cut off.
    sums = [torch.dot(b, b), torch.dot(a, b)]
    signs = a.sub_(b).sign_()  # 0 for NaN: an element that stays NaN did not change
    return [*sums, torch.dot(signs, signs)]


def in_parts(rows: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, and numbers that go with them, row by row: the same in parts that stay in a cache.

    For a function of each element: what it makes on its way is as small as a part. Numbers are 0-dim.
    """
    for row in rows:
        n, most = row[0].numel(), _most(row[0].device)
        if n <= most or not all(each.is_contiguous() for each in row):
            yield row
            continue
        flat = [each.view(-1) if each.ndim else each for each in row]
        for i in range(0, n, most):
            yield tuple(each[i : i + most] if each.ndim else each for each in flat)


def _most(device: torch.device) -> int:
    """Elements of a bucket."""
    return min(IN_CACHE * torch.get_num_threads(), ON_GPU) if device.type == "cpu" else ON_GPU


def cut(plan: Plan, flat: Sequence[Tensor]) -> list[Bucket]:
    """The buckets that hold these tensors, in the order of the plan's pieces; worked out once for each plan of dense ones."""
    most = _most(plan.device)
    if plan.sparse:  # of which each step may have other rows
        return _cut_all(plan, flat, most)
    known = _cuts.setdefault(plan, {})
    if most not in known:
        known[most] = _cut_all(plan, flat, most)
    return known[most]


_cuts: WeakKeyDictionary[Plan, dict[int, list[Bucket]]] = WeakKeyDictionary()


def _cut_all(plan: Plan, flat: Sequence[Tensor], most: int) -> list[Bucket]:
    sizes = [g.numel() for g in flat]
    return [b for piece in range(len(plan.pieces)) for b in _cut(plan, piece, sizes, most)]


def _cut(plan: Plan, piece: int, sizes: Sequence[int], most: int) -> Iterator[Bucket]:
    gathered: dict[object, list[int]] = {}  # positions, by dtype and device
    for k in plan.pieces[piece]:
        n = sizes[k]
        if n > most:
            size = -(-n // -(-n // most))
            size += -size % ALIGNED
            for i in range(0, n, size):
                yield Bucket(piece, [k], slice(i, i + size), min(size, n - i))
            continue
        its = gathered.setdefault(plan.kinds[k], [])
        total = sum(sizes[j] for j in its)
        if its and total + n > most:
            yield Bucket(piece, its, None, total)
            its = gathered[plan.kinds[k]] = []
        its.append(k)
    for its in gathered.values():
        yield Bucket(piece, its, None, sum(sizes[j] for j in its))


def _room(plan: Plan, buckets: Sequence[Bucket]) -> tuple[Tensor, Tensor]:
    """Twice the room for a bucket."""
    most = max((bucket.size for bucket in buckets), default=0)
    room = torch.empty((2, most + -most % ALIGNED), device=plan.device, dtype=plan.dtype)
    return room[0], room[1]


def _copied(plan: Plan, bucket: Bucket, parts: list[Tensor], room: Tensor) -> Tensor:
    """The bucket's elements, one after another in the precision of norms."""
    out = room[: bucket.size]
    if len(parts) == 1:
        return out.copy_(parts[0], non_blocking=True)
    if plan.scattered or plan.cast is not None:
        parts = [part.to(plan.device, plan.dtype, non_blocking=True) for part in parts]
    return torch.cat(parts, out=out)


def _joined(plan: Plan, bucket: Bucket, parts: list[Tensor], room: Tensor) -> Tensor:
    """The same; where they lie so already, as they lie there."""
    if len(parts) > 1 or plan.scattered or plan.cast is not None:
        return _copied(plan, bucket, parts, room)
    return parts[0]


def _by_piece(
    plan: Plan, buckets: Sequence[Bucket], found: list[Tensor], fields: int
) -> list[Tensor]:
    """What was told of each bucket, in ``fields`` numbers -> the same of each piece [K]."""
    counts = [0] * len(plan.pieces)
    for bucket in buckets:
        counts[bucket.piece] += 1
    of_piece = plan.gather(found).view(-1, fields).split(counts)
    sums = [each.sum(0) for each in of_piece]
    return list(torch.stack(sums).unbind(1)) if sums else [plan.gather([])] * fields
