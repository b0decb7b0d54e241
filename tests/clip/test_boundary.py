"""Clipping inside the model: forward values, backward gradients per sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmrun.clip.boundary import clamp_features, clip_gradient
from mmrun.errors import UserError


def test_clamp_features():
    x = torch.tensor([-3.0, -1.0, 0.5, 1.0, 2.0], requires_grad=True)
    y = clamp_features(x, 1.0)
    assert y.tolist() == [-1, -1, 0.5, 1, 1]
    (gradient,) = torch.autograd.grad((y * torch.arange(1.0, 6)).sum(), x)
    assert gradient.tolist() == [0, 2, 3, 4, 0]


def test_straight_through_clamps_the_value_but_not_the_gradient():
    x = torch.tensor([-3.0, 0.1, 2.0], requires_grad=True)
    y = clamp_features(x, 0.7, straight_through=True)
    assert torch.equal(y, x.clamp(-0.7, 0.7))
    (gradient,) = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 3.0])).sum(), x)
    assert gradient.tolist() == [1, 2, 3]


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_samples_gradient_is_clipped(shape: tuple[int, ...], dtype: torch.dtype):
    """Samples of very different length: the long ones get norm c, the short ones keep their bits."""
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True, dtype=dtype)
    size = torch.tensor([1e-3, 0.1, 10.0, 1e3, 0.0]).view(-1, *[1] * (len(shape) - 1))
    upstream = (torch.sign(torch.randn(shape)) * size).to(dtype)
    y = clip_gradient(x, 2.0)
    assert torch.equal(y, x)
    (got,) = torch.autograd.grad(y, x, upstream)
    assert got.dtype == dtype
    for g, u in zip(got.double(), upstream.double(), strict=True):
        n = u.norm()
        if n <= 2:
            assert torch.equal(g, u)
        else:
            torch.testing.assert_close(
                g, u * 2 / n, rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=0
            )


def test_a_non_finite_sample_stays_alone():
    x = torch.zeros(3, 2, requires_grad=True)
    upstream = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [3.0, 4.0]])
    (got,) = torch.autograd.grad(clip_gradient(x, 1.0), x, upstream)
    torch.testing.assert_close(got[:2], upstream[:2], equal_nan=True)
    torch.testing.assert_close(got[2], torch.tensor([0.6, 0.8]))


def test_infinity_is_off():
    x = torch.randn(3, 2, requires_grad=True)
    assert clip_gradient(x, math.inf) is x
    assert clamp_features(x, math.inf) is x
    assert clamp_features(x, math.inf, straight_through=True) is x


def test_unclipped_derivatives_are_right():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: clip_gradient(t, 1e6).sin(), (x,))
    assert torch.autograd.gradcheck(lambda t: clamp_features(t, 1e6, True).sin(), (x,))
    assert torch.autograd.gradcheck(lambda t: clamp_features(t, 0.5).sin(), (x,))


def test_under_vmap_each_member_has_its_own_samples():
    members = torch.tensor([[[3.0, 4.0], [0.3, 0.4]], [[0.0, 5.0], [6.0, 8.0]]])  # [members, B, D]

    def loss(x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
        return (clip_gradient(x, 1.0) * upstream).sum()

    got = torch.func.vmap(torch.func.grad(loss))(torch.zeros(2, 2, 2), members)
    want = torch.tensor([[[0.6, 0.8], [0.3, 0.4]], [[0.0, 1.0], [0.6, 0.8]]])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
@pytest.mark.parametrize(
    ("function", "key"), [(clip_gradient, "gradient_clip"), (clamp_features, "feature_clip")]
)
def test_refused(function: Any, key: str, bad: float):
    with pytest.raises(UserError, match=rf"model\.{key}"):
        function(torch.zeros(2, 2), bad)
