"""Clipping inside the model: features clamped going forward, gradients clipped going back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mmrun.errors import UserError


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


def clip_gradient(x: Tensor, c: float) -> Tensor:
    """Identity going forward; going back, each sample's gradient is shortened to L2 norm c where it is longer.

    A sample whose gradient is not finite passes as it is.

    Args:
        x: [B, ...]; a sample's norm is over all but the first dimension.
        c: bound, in units of the L2 norm of one sample's gradient of the batch's loss (a mean over B samples makes
            it B times smaller); > 0; infinity is "off".

    Raises:
        UserError: c is not above 0; names ``model.gradient_clip``.
    """
    _check("model.gradient_clip", c)
    if c == math.inf:
        return x
    return _ClipGradient.apply(x, c)  # pyright: ignore[reportReturnType] (untyped apply)


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


class _ClipGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, c: float) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.c = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        over = tuple(range(1, gradient.ndim))
        wide = torch.promote_types(gradient.dtype, torch.float32)
        if over:
            norm = torch.linalg.vector_norm(
                gradient, 2, dim=over, keepdim=True, dtype=wide
            )  # [B, 1...]
        else:
            norm = gradient.abs().to(wide)
        clipped = torch.where((norm > ctx.c) & torch.isfinite(norm), ctx.c / norm, 1.0)
        return (gradient * clipped).to(gradient.dtype), None
