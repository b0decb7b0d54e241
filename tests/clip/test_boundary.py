"""Clipping inside the model: forward values, backward gradients per sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmrun.clip.boundary import clamp_features, clip_gradients
from mmrun.errors import UserError


def clip_gradient(x: torch.Tensor, c: float) -> torch.Tensor:
    """One tensor alone."""
    (clipped,) = clip_gradients((x,), c)
    return clipped


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
        pooled, _ = clip_gradients((x, torch.zeros(2, 3)), 1.0)  # of the second nothing is read
        return (pooled * upstream).sum()

    got = torch.func.vmap(torch.func.grad(loss))(torch.zeros(2, 2, 2), members)
    want = torch.tensor([[[0.6, 0.8], [0.3, 0.4]], [[0.0, 1.0], [0.6, 0.8]]])
    torch.testing.assert_close(got, want)


def test_tensors_are_clipped_as_one():
    """Norms 13, 0.5 and 0 over both tensors; neither of them alone is above 12."""
    values = torch.zeros(3, 2, 2, requires_grad=True)
    pooled = torch.zeros(3, 1, requires_grad=True)
    of_values = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.3, 0.0], [0.0, 0.0]], [[0.0, 0.0]] * 2])
    of_pooled = torch.tensor([[12.0], [0.4], [0.0]])
    seen: list[tuple[list[float], list[bool]]] = []
    outputs = clip_gradients(
        (values, pooled),
        12.5,
        measure=lambda norm, long: seen.append((norm.tolist(), long.tolist())),
    )
    got = torch.autograd.grad(outputs, (values, pooled), (of_values, of_pooled))
    assert seen == [([13.0, 0.5, 0.0], [True, False, False])]
    torch.testing.assert_close(got[0][0], of_values[0] * 12.5 / 13)
    torch.testing.assert_close(got[1][0], of_pooled[0] * 12.5 / 13)
    assert torch.equal(got[0][1:], of_values[1:])
    assert torch.equal(got[1][1:], of_pooled[1:])


@pytest.mark.parametrize("read", [0, 1])
def test_what_is_not_read_gets_no_gradient_and_counts_for_nothing(read: int):
    tensors = [torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 3, 2, requires_grad=True)]
    outputs = clip_gradients(tensors, 1.0)
    torch.manual_seed(0)
    upstream = torch.randn_like(outputs[read])
    gradients = torch.autograd.grad(outputs[read], tensors, upstream, allow_unused=True)
    assert gradients[1 - read] is None
    (alone,) = torch.autograd.grad(clip_gradient(tensors[read], 1.0), tensors[read], upstream)
    assert torch.equal(gradients[read], alone)


def test_a_scaled_backward_pass_is_clipped_as_the_unscaled_one():
    upstream = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    norms: list[torch.Tensor] = []
    for scale in (64.0, torch.tensor(64.0)):
        x = torch.zeros(2, 2, requires_grad=True)
        (y,) = clip_gradients((x,), 1.0, scale=scale, measure=lambda norm, _: norms.append(norm))
        (got,) = torch.autograd.grad(y, x, upstream * 64)
        torch.testing.assert_close(norms.pop(), torch.tensor([5.0, 0.5]))
        torch.testing.assert_close(got / 64, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


def test_an_infinite_bound_can_be_watched():
    x = torch.zeros(2, 2, requires_grad=True)
    seen: list[list[float]] = []
    (y,) = clip_gradients((x,), math.inf, measure=lambda norm, _: seen.append(norm.tolist()))
    upstream = torch.tensor([[3.0, 4.0], [math.inf, 0.0]])
    (got,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(got, upstream)
    assert seen == [[5.0, math.inf]]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
@pytest.mark.parametrize(
    ("function", "key"), [(clip_gradient, "gradient_clip"), (clamp_features, "feature_clip")]
)
def test_refused(function: Any, key: str, bad: float):
    with pytest.raises(UserError, match=rf"model\.{key}"):
        function(torch.zeros(2, 2), bad)
