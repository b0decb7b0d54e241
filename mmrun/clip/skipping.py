"""Leaving out an optimizer's step on the word of a number that is still on the device: fused optimizers can.

They could multiply gradients as well (``grad_scale``). That saves 12 % of clip and step with 10 million weights in 40
tensors on a CPU and nothing with 160 thousand, works for one coefficient per optimizer, and leaves
gradients unclipped to whoever reads them before the step: it is not done.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer
from torch.utils.hooks import RemovableHandle


def can_skip(optimizer: Optimizer | None) -> bool:
    """Whether its step is left out where its ``found_inf`` is 1: torch's fused ones."""
    if not isinstance(optimizer, Adam | SGD | Adagrad):  # AdamW is an Adam
        return False
    groups = optimizer.param_groups
    # With dampening, the first step of the momentum is another one, which cannot be got ready.
    return all(each.get("fused") and not each.get("dampening") for each in groups)


class Skipping:
    """Has an optimizer leave out its next step where ``mark`` says so, and no other.

    Args:
        optimizer: one that ``can_skip``.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._mark: Tensor | None = None
        here = weakref.ref(self)

        def before(opt: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG001 (torch's signature)
            if (skipping := here()) is not None:
                skipping._before(opt)

        def after(opt: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            if (skipping := here()) is not None:
                skipping._after(opt)

        hooks = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
        weakref.finalize(self, remove, *hooks).atexit = False

    def mark(self, optimizer: Any, skip: Tensor) -> None:
        """Leave out the step that comes next, or that this is called in, where ``skip`` (0-dim Bool)."""
        _give_momentum(optimizer)
        self._mark = optimizer.found_inf = skip.to(torch.float32)

    def clear(self, optimizer: Any) -> None:
        """Take a mark away, of a step that was left out otherwise; or the next one would be too."""
        if self._mark is not None and getattr(optimizer, "found_inf", None) is self._mark:
            del optimizer.found_inf
        self._mark = None

    def _before(self, optimizer: Any) -> None:
        found = getattr(optimizer, "found_inf", None)
        if self._mark is None or found is None or found is self._mark:
            return
        # A gradient scaler has put its own there, and takes away again whatever is there.
        optimizer.found_inf = torch.maximum(found, self._mark.to(found.device))

    def _after(self, optimizer: Any) -> None:
        self.clear(optimizer)


def skip_next(
    known: MutableMapping[Optimizer, Skipping], optimizer: Optimizer, skip: Tensor, *, look: bool
) -> None:
    """Have an optimizer leave out its next step where ``skip`` (0-dim Bool); with ``look``, hooks are there only if so.

    Args:
        known: those that have had to, which one more is added to.
        optimizer: one that ``can_skip``.
        skip: whether.
        look: whether ``skip`` may be read here.
    """
    skipping = known.get(optimizer)
    if look and not bool(skip):
        if skipping is not None:
            skipping.clear(optimizer)
        return
    if skipping is None:
        skipping = known[optimizer] = Skipping(optimizer)
    skipping.mark(optimizer, skip)


def remove(*hooks: RemovableHandle) -> None:
    """Take hooks off what they hang on."""
    for each in hooks:
        each.remove()


def _give_momentum(optimizer: Optimizer) -> None:
    """Zeros for the momentum that a first step would make: left out, it would leave it uninitialised (torch 2.13)."""
    if not isinstance(optimizer, SGD):
        return
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
