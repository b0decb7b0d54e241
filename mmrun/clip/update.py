"""An optimizer's update, taken apart and put together again: what ``clip.on=update`` clips."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, _foreach_copy_, nn  # pyright: ignore[reportPrivateImportUsage]
from torch.optim import Optimizer


class Update:
    """u = (w_before - w_after) / lr of each parameter at each step, which ``then`` may change.

    What the optimizer makes of the gradient, with momentum, preconditioning and weight decay, per unit of its
    learning rate; under plain gradient descent it is the gradient. A parameter keeps its bits where u stays what it is. Keeps
    one copy of the weights. A parameter group whose learning rate is 0 has no update.

    Args:
        optimizer: that makes the steps.
        parameters: that are clipped.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        self._wanted = {id(p) for p in parameters}
        self._old: dict[int, Tensor] = {}
        self._updates: dict[int, Tensor] = {}
        self._then: Callable[[Update], None] | None = None
        here = weakref.ref(self)  # an optimizer that outlives a training must not keep its weights

        def before(opt: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001 (torch's signature)
            if (update := here()) is not None:
                update._before(opt)

        def after(opt: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            if (update := here()) is not None:
                update._after(opt)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def then(self, change: Callable[[Update], None]) -> None:
        """What to do with each step's update before it counts: change ``updates`` in place."""
        self._then = change

    def updates(self, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """The updates of some parameters; None where there is none."""
        return [self._updates.get(id(p)) for p in parameters]

    def weights(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """What those of them that have an update were before it."""
        return [self._old[id(p)] for p in parameters if id(p) in self._updates]

    def _mine(self, group: Mapping[str, Any]) -> list[Tensor]:
        return [p for p in group["params"] if id(p) in self._wanted]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            mine = self._mine(group)
            for p in mine:
                if id(p) not in self._old:
                    self._old[id(p)] = torch.empty_like(p)
            if mine:
                _foreach_copy_([self._old[id(p)] for p in mine], [p.detach() for p in mine])

    @torch.no_grad()
    def _after(self, optimizer: Optimizer) -> None:
        assert self._then is not None
        moved: list[tuple[list[Tensor], Any]] = []
        for group in optimizer.param_groups:
            mine = [p.detach() for p in self._mine(group) if p.grad is not None]
            ids = [id(p) for p in self._mine(group) if p.grad is not None]
            rate = group["lr"]
            if mine and (isinstance(rate, Tensor) or rate):
                self._updates |= zip(ids, self._of(ids, mine, rate), strict=True)
                moved.append((mine, (ids, rate)))
        self._then(self)
        for mine, (ids, rate) in moved:
            # Worked out again rather than kept: what was not changed cancels to 0 exactly.
            difference = self._of(ids, mine, rate)
            torch._foreach_sub_(difference, [self._updates[i] for i in ids])
            torch._foreach_mul_(difference, rate)
            torch._foreach_add_(mine, difference)
        self._updates = {}

    def _of(self, ids: Sequence[int], weights: list[Tensor], rate: Any) -> list[Tensor]:
        updates = list(torch._foreach_sub([self._old[i] for i in ids], weights))
        torch._foreach_div_(updates, rate)
        return updates
