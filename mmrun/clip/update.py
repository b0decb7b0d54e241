"""An optimizer's update, taken apart and put together again: what ``clip.on=update`` clips."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_div_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_mul_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_sub,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_sub_,  # pyright: ignore[reportPrivateImportUsage]
    nn,
)
from torch.optim import Optimizer

from mmrun.clip.shards import local
from mmrun.clip.skipping import remove
from mmrun.errors import UserError


class Update:
    """u = (w_before - w_after) / lr of each parameter at each step, which ``then`` may change.

    What the optimizer makes of the gradient, with momentum, preconditioning and weight decay, per unit of its
    learning rate; under plain gradient descent it is the gradient. A parameter keeps its bits where u stays what it
    is. Keeps one copy of the weights. A parameter group whose learning rate is 0 has no update.

    Args:
        optimizer: that makes the steps; it keeps neither this nor the weights alive.
        parameters: {name: those that are clipped}.
        then: what to do with each step's update before it counts: change ``updates`` in place. A bound method.

    Raises:
        UserError: one of them is not the optimizer's.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, nn.Parameter],
        then: Callable[[Update], None],
    ) -> None:
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, p in parameters.items():
            if p.requires_grad and id(p) not in theirs:
                raise UserError(
                    "clip.on=update clips the updates of one optimizer",
                    given=f"{name}, which is not among its parameters",
                    remedy="Use a Clipper for each optimizer, bound to its parameters.",
                )
        self._wanted = {id(p) for p in parameters.values()}
        self._old: dict[int, Tensor] = {}  # by id of the parameter; its part in this process
        self._updates: dict[int, Tensor] = {}
        self._within = False  # a step
        self._then = weakref.WeakMethod(then)
        self._optimizer = weakref.ref(optimizer)
        here = weakref.ref(self)

        def before(opt: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001 (torch's signature)
            if (update := here()) is not None:
                update._before(opt)

        def after(opt: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            if (update := here()) is not None:
                update._after(opt)

        hooks = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
        # Also where whoever attached it is dropped: no dead hooks stay behind.
        self._end = weakref.finalize(self, remove, *hooks)
        self._end.atexit = False

    def is_of(self, optimizer: Optimizer) -> bool:
        """Whether it is this optimizer's."""
        return self._optimizer() is optimizer

    def end(self) -> None:
        """Leave the optimizer alone from now on."""
        self._end()

    def updates(self, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """The updates of some parameters; None where there is none."""
        return [self._updates.get(id(p)) for p in parameters]

    def weights(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """What those of them that have an update were before it."""
        return [self._old[id(p)] for p in parameters if id(p) in self._updates]

    def _mine(self, group: Mapping[str, Any]) -> list[nn.Parameter]:
        return [p for p in group["params"] if id(p) in self._wanted]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer) -> None:
        self._within = True
        for group in optimizer.param_groups:
            mine = self._mine(group)
            here = [local(p.detach()) for p in mine]
            for p, weight in zip(mine, here, strict=True):
                old = self._old.get(id(p))
                if old is None or (old.device, old.dtype) != (weight.device, weight.dtype):
                    self._old[id(p)] = torch.empty_like(weight)
            if mine:
                _foreach_copy_([self._old[id(p)] for p in mine], here)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer) -> None:
        if not self._within:
            raise RuntimeError("attach(optimizer) comes before its step, not within it")
        self._within = False
        moved: list[tuple[list[int], list[Tensor], float | Tensor]] = []
        for group in optimizer.param_groups:
            mine = [p for p in self._mine(group) if p.grad is not None]
            rate = _rate(group["lr"])
            if mine and rate is not None:
                ids, weights = [id(p) for p in mine], [local(p.detach()) for p in mine]
                self._updates |= zip(ids, self._of(ids, weights, rate), strict=True)
                moved.append((ids, weights, rate))
        if (then := self._then()) is not None:
            then(self)
        for ids, weights, rate in moved:
            # Worked out again rather than kept: what was not changed cancels to 0 exactly.
            difference = self._of(ids, weights, rate)
            _foreach_sub_(difference, [self._updates[i] for i in ids])
            _foreach_mul_(difference, rate)
            _foreach_add_(weights, difference)
        self._updates = {}

    def _of(self, ids: Sequence[int], weights: list[Tensor], rate: float | Tensor) -> list[Tensor]:
        updates = list(_foreach_sub([self._old[i] for i in ids], weights))
        _foreach_div_(updates, rate)
        return updates


def _rate(rate: float | Tensor) -> float | Tensor | None:
    """A learning rate to divide by; None for 0. On another device nobody looks: 1 stands for 0, where nothing moves."""
    if isinstance(rate, Tensor):
        if rate.device.type != "cpu":
            return torch.where(rate == 0, 1.0, rate)
        rate = float(rate)
    return rate or None
