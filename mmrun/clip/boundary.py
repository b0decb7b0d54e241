"""Clipping inside the model: features clamped going forward, gradients clipped going back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mmrun.errors import UserError

Measure = Callable[[Tensor, Tensor], None]


def clamp_features(x: Tensor, eps: float, straight_through: bool = False) -> Tensor:
    """Clamp: x -> min(max(x, -eps), eps) for each element; x itself at eps = infinity.

    The gradient is 0 where an element was clamped; with ``straight_through`` it passes as if none had been.

    Args:
        x: features, any shape.
        eps: bound, in units of a feature; > 0.
        straight_through: whether the gradient ignores the clamp (Bengio et al. 2013, arXiv 1308.3432).

    Raises:
        UserError: eps is not above 0; names ``model.feature_clip``.
    """
    _check("model.feature_clip", eps)
    if eps == math.inf:
        return x
    if straight_through:
        return _StraightThroughClamp.apply(x, eps)  # pyright: ignore[reportReturnType] (untyped apply)
    return x.clamp(-eps, eps)


def clip_gradients(
    tensors: Sequence[Tensor],
    c: float,
    *,
    scale: float | Tensor = 1.0,
    measure: Measure | None = None,
) -> tuple[Tensor, ...]:
    """Identity going forward; going back, each sample's gradient is shortened to L2 norm c where it is longer.

    The tensors are clipped as one: a sample's norm is over all of them, and one factor shortens its gradient in each. A
    tensor that nothing depends on gets no gradient and counts for nothing. A sample whose gradient is not finite passes
    as it is.

    Args:
        tensors: each [B, ...]; all but the first dimension belong to the sample.
        c: bound, in units of the L2 norm of one sample's gradient of the step's loss (a mean over B samples makes
            it B times smaller); > 0; infinity is "off".
        scale: how many times larger gradients are in the backward pass than those of the step's loss.
        measure: called in each backward pass with the norms [B] before clipping, in units of ``c``, and which of them
            are shortened, Bool [B]. It is no part of the function: what is transformed (torch.func) has none.

    Raises:
        UserError: c is not above 0; names ``model.gradient_clip``.
    """
    _check("model.gradient_clip", c)
    if c == math.inf and measure is None:
        return tuple(tensors)
    return _ClipGradients.apply(c, scale, measure, *tensors)  # pyright: ignore[reportReturnType] (untyped apply)


def _check(key: str, bound: float) -> None:
    if not bound > 0:
        raise UserError(
            f"{key} must be a number above 0",
            given=bound,
            remedy="Give a positive number, or .inf for no bound.",
        )


class _StraightThroughClamp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> Tensor:
        return x.clamp(-eps, eps)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad_outputs[0], None


class _ClipGradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        c: float,  # noqa: ARG004 (autograd hands it to setup_context)
        scale: float | Tensor,  # noqa: ARG004
        measure: Measure | None,  # noqa: ARG004
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.c, ctx.scale, ctx.measure = inputs[:3]
        ctx.set_materialize_grads(False)  # None for a tensor that the loss does not depend on

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [g for g in grad_outputs if g is not None]
        if not given:
            return None, None, None, *grad_outputs
        norm = _norms(given)  # [B]
        if not (isinstance(ctx.scale, float) and ctx.scale == 1.0):
            norm = norm / ctx.scale
        long = (norm > ctx.c) & torch.isfinite(norm)
        if ctx.measure is not None:
            ctx.measure(norm.detach(), long)
        factor = torch.where(long, ctx.c / norm, 1.0)
        clipped = (
            None if g is None else (g * factor.view(-1, *[1] * (g.ndim - 1))).to(g.dtype)
            for g in grad_outputs
        )
        return None, None, None, *clipped


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm of each sample [B] over all gradients [B, ...]; in float32 at least."""
    wide = torch.float32
    for gradient in gradients:
        wide = torch.promote_types(wide, gradient.dtype)
    norms = [
        torch.linalg.vector_norm(g, 2, dim=tuple(range(1, g.ndim)), dtype=wide)
        if g.ndim > 1
        else g.abs().to(wide)
        for g in gradients
    ]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), 2, dim=0)
