"""Batches of a split in an order that depends on (seed, epoch) alone, resumable in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mmrun.batch import Batch
from mmrun.datasets import Split
from mmrun.errors import UserError

_GOLDEN = (
    0x9E3779B1  # 2**32 / golden ratio, odd: keeps (seed, epoch) pairs apart (Knuth, TAOCP 6.4)
)


class Loader:
    """Batches of a split, in the same order on every rank; each rank takes its slice of every batch.

    Iterating is lazy: the epoch and the position are read when the first batch is asked for, because Lightning
    calls ``iter`` before ``set_epoch`` in the first epoch of a fit.

    Args:
        split: the samples.
        batch_size: samples per batch over all ranks together; "all" is one batch of the whole split.
        shuffle: a new order for each epoch, for training; a last batch with fewer samples than ranks is
            dropped then, since every rank must take part in every step. Else the split's own order.
        seed: decides the orders, along with the epoch.
        rank: which of the ranks this is.
        world: number of ranks.
        device: where the split's tensors are; the order goes there once per epoch, not once per batch.

    Raises:
        UserError: no sample, a batch size below 1, or fewer samples per training batch than ranks.
    """

    batch_sampler = None  # Lightning looks for one on whatever has a sampler

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int | Literal["all"],
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} ranks")
        if batch_size != "all" and batch_size < 1:
            raise UserError(
                "dataset.batch_size is a number of samples",
                given=batch_size,
                remedy="Give 1 or more, or all for full-batch descent.",
            )
        if len(split) == 0:
            raise UserError("a split of the dataset has no samples", remedy="Give it more data.")
        size = len(split) if batch_size == "all" else min(batch_size, len(split))
        if shuffle and size < world:
            raise UserError(
                "a training batch has fewer samples than there are devices",
                given=f"dataset.batch_size={batch_size}, {len(split)} samples, {world} devices",
                remedy="The batch size is the total over all devices: raise it, or use fewer.",
            )
        self.split = split
        self.batch_size = size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world = world
        self.device = device
        self._epoch = 0
        self._position = 0
        self._resume_at: int | None = None

    @property
    def sampler(self) -> Loader:
        """The loader itself: Lightning calls ``set_epoch`` on an attribute of this name alone."""
        return self

    def __len__(self) -> int:
        """Batches per epoch on this rank, wherever the epoch was resumed."""
        full, rest = divmod(len(self.split), self.batch_size)
        # The first ranks take the remainder, so rank r has a share of a batch of more than r samples.
        enough = self.world if self.shuffle else self.rank + 1
        return (full if self.batch_size >= enough else 0) + (rest >= enough)

    def __iter__(self) -> Iterator[Batch]:
        start = self._resume_at or 0
        self._resume_at, self._position = None, start
        order = self.order().to(self.device)
        for position in range(start, len(self)):
            # Counted before it is handed out: a checkpoint after the step must not repeat it.
            self._position = position + 1
            yield self.split.batch(self._share(order, position))

    def order(self) -> Tensor:
        """The rows of the split in this epoch's order, int64 [N]; the same on every rank."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        generator = torch.Generator()
        # torch seeds its CPU generator with 32 bits.
        generator.manual_seed((self.seed * _GOLDEN + self._epoch) & 0xFFFFFFFF)
        return torch.randperm(len(self.split), generator=generator)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; to the epoch where we are, it changes nothing."""
        if epoch != self._epoch:
            self._epoch, self._position, self._resume_at = epoch, 0, None

    def state_dict(self) -> dict[str, int]:
        """{"epoch", "position"}: position is the number of this epoch's batches already handed out."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there: the next iteration starts at the position, those after it at 0."""
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._resume_at = self._position

    def _share(self, order: Tensor, position: int) -> Tensor:
        """This rank's contiguous part of a batch; parts differ by at most one sample."""
        batch = order[position * self.batch_size : (position + 1) * self.batch_size]
        size, extra = divmod(len(batch), self.world)
        first = self.rank * size + min(self.rank, extra)
        return batch[first : first + size + (self.rank < extra)]
