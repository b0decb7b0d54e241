"""The gradient of the training loss, worked out beside a training that does not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmrun.batch import Batch


class Aside:
    """Gradients on the side, for one measurement.

    ``torch.autograd.grad`` leaves ``.grad`` alone and goes past DDP's reducer, so that no rank waits for another. Random
    numbers and buffers are put back after each ``drawing``; all of them draw the same numbers, those that the
    training was about to draw when the measurement began: dropout hits the same units on two sides of a step.
    It computes in the weights' own type, without autocast: in bfloat16 a gradient is rounded to 8 bits, and
    a difference of two would be that of their roundings.

    Args:
        loss: batch -> what the training minimises, 0-dim.
        module: whose forward pass that is.
        sums: whether the loss is a sum over the batch, not a mean.
    """

    def __init__(self, loss: Callable[[Batch], Tensor], module: nn.Module, *, sums: bool) -> None:
        self.sums = sums
        self._loss = loss
        self._module = module
        self._device = next(module.parameters()).device
        self._random = self._get_random()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it ``gradient`` may be asked for, and each gradient draws on from the last."""
        random = self._get_random()
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        self._set_random(self._random)
        try:
            yield
        finally:
            self._set_random(random)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    def gradient(self, batch: Batch, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Of the loss on a batch, by parameter; zero where it does not reach."""
        with torch.enable_grad(), torch.autocast(self._device.type, enabled=False):
            loss = self._loss(batch)
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        return [
            torch.zeros_like(parameter) if gradient is None else gradient.detach()
            for parameter, gradient in zip(parameters, found, strict=True)
        ]

    def _get_random(self) -> tuple[Tensor, Tensor | None]:
        on_gpu = self._device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if on_gpu else None

    def _set_random(self, state: tuple[Tensor, Tensor | None]) -> None:
        cpu, gpu = state
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, self._device)


def square(gradient: Sequence[Tensor]) -> Tensor:
    """|g|^2 over all tensors, in double precision, 0-dim."""
    return torch.stack([tensor.double().square().sum() for tensor in gradient]).sum()
