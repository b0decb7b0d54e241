"""Loader: one order for all ranks, a part of each batch per rank, and the same order after an interruption."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from mmrun.datasets import MemorySplit
from mmrun.errors import UserError
from mmrun.loader import Loader


def split(n: int) -> MemorySplit:
    return MemorySplit({"a": torch.arange(n, dtype=torch.float32)[:, None]}, torch.arange(n))


def rows(loader: Loader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def make(n: int = 23, **settings) -> Loader:
    return Loader(split(n), **{"batch_size": 4, "shuffle": True, "seed": 5, **settings})


def test_an_epoch_has_every_sample_once_and_the_batches_hold_them():
    loader = make()
    epoch = list(loader)
    assert [len(batch.index) for batch in epoch] == [4, 4, 4, 4, 4, 3]
    assert len(loader) == 6
    assert sorted(i for batch in epoch for i in batch.index.tolist()) == list(range(23))
    for batch in epoch:
        assert torch.equal(batch.target, batch.index)
        assert batch.inputs["a"][:, 0].tolist() == batch.index.tolist()


def test_order_is_a_function_of_seed_and_epoch():
    first, again, other = make(), make(), make(seed=6)
    epochs = []
    for epoch in range(3):
        for loader in (first, again, other):
            loader.set_epoch(epoch)
        epochs.append(rows(first))
        assert rows(again) == epochs[-1] != rows(other)
    assert len({str(e) for e in epochs}) == 3
    first.set_epoch(1)
    assert rows(first) == epochs[1]


def test_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    rows(make())
    assert torch.equal(torch.rand(3), wanted)


def test_without_shuffling_the_order_is_the_splits():
    loader = make(shuffle=False)
    loader.set_epoch(3)
    assert list(chain(*rows(loader))) == list(range(23))


def test_all_is_one_batch():
    loader = make(batch_size="all")
    assert [len(batch) for batch in rows(loader)] == [23]
    assert [len(batch) for batch in rows(make(batch_size=100))] == [23]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [4, 21, 22, 23, 24])
def test_ranks_share_out_every_training_batch(world, n):
    whole = rows(make(n))
    parts = [rows(make(n, rank=r, world=world)) for r in range(world)]
    kept = [batch for batch in whole if len(batch) >= world]
    assert all(len(part) == len(kept) for part in parts)
    for position, batch in enumerate(kept):
        pieces = [part[position] for part in parts]
        assert list(chain(*pieces)) == batch
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
        assert all(pieces)


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 4, 21, 23])
def test_ranks_share_out_every_sample_for_evaluation(world, n):
    loaders = [make(n, rank=r, world=world, shuffle=False) for r in range(world)]
    parts = [rows(loader) for loader in loaders]
    assert sorted(chain(*chain(*parts))) == list(range(n))
    assert all(batch for part in parts for batch in part)
    assert [len(loader) for loader in loaders] == [len(part) for part in parts]


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
@pytest.mark.parametrize("before", [True, False])
def test_resumed_epoch_is_the_uninterrupted_one(stop, before):
    """before: Lightning makes the first iterator before it sets the epoch."""
    whole = make()
    whole.set_epoch(2)
    expected = rows(whole)

    interrupted = make()
    interrupted.set_epoch(2)
    batches = iter(interrupted)
    seen = [next(batches).index.tolist() for _ in range(stop)]
    state = interrupted.state_dict()
    assert state == {"epoch": 2, "position": stop}

    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    if before:
        batches = iter(resumed)
        resumed.set_epoch(2)
    else:
        resumed.set_epoch(2)
        batches = iter(resumed)
    assert len(resumed) == 6
    assert seen + [batch.index.tolist() for batch in batches] == expected
    assert resumed.state_dict() == {"epoch": 2, "position": 6}
    # Once only: the next epoch, or the same one again, is whole.
    assert rows(resumed) == expected
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert rows(resumed) == rows(whole)


def test_position_does_not_carry_over_to_another_epoch():
    loader = make()
    loader.load_state_dict({"epoch": 2, "position": 6})
    batches = iter(loader)
    loader.set_epoch(3)
    assert loader.state_dict() == {"epoch": 3, "position": 0}
    other = make()
    other.set_epoch(3)
    assert [batch.index.tolist() for batch in batches] == rows(other)


def test_wrong_sizes():
    with pytest.raises(UserError, match=r"dataset\.batch_size is a number of samples"):
        make(batch_size=0)
    with pytest.raises(UserError, match="fewer samples than there are devices"):
        make(batch_size=2, world=3)
    with pytest.raises(UserError, match="no samples"):
        make(0)
    with pytest.raises(ValueError, match="rank 2"):
        make(rank=2, world=2)


@pytest.mark.filterwarnings("ignore")  # Lightning's own: workers, logging interval, torch's pytrees
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 8])
def test_lightning_resumes_in_mid_epoch(tmp_path, stop):
    """Three epochs of three batches; a checkpoint after ``stop`` steps, and a new fit from there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_lightning import Callback, LightningModule, Trainer

    class Seen(LightningModule):
        def __init__(self):
            super().__init__()
            self.seen: list[tuple[int, list[int]]] = []
            self.weight = nn.Parameter(torch.zeros(1))

        def training_step(self, batch):
            self.seen.append((self.current_epoch, batch.index.tolist()))
            return (self.weight * batch.inputs["a"]).mean()

        def validation_step(self, batch):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_: Any, **__: Any):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "batch.ckpt")

        def on_validation_end(self, trainer, *_: Any, **__: Any):
            if not trainer.sanity_checking and trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "validation.ckpt")

        def on_train_epoch_end(self, trainer, *_: Any, **__: Any):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "epoch.ckpt")

    def fit(callbacks, path=None):
        module = Seen()
        Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=callbacks,
        ).fit(module, make(11), make(4, shuffle=False), ckpt_path=path)
        return module.seen

    whole = fit([Save()])
    assert len(whole) == 9
    assert len({str(order) for _, order in whole}) == 9
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == (3 if stop == 3 else 1)
    for path in saved:
        assert fit([], path) == whole[stop:], path.name
