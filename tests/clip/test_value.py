"""Value clipping: published numbers, parity with torch, and what it reports."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mmrun.clip.stats import Stats
from mmrun.clip.value import Value


def clip(threshold: float, *tensors: Tensor) -> tuple[list[Tensor], Stats]:
    parameters = {str(i): nn.Parameter(torch.zeros_like(g)) for i, g in enumerate(tensors)}
    for parameter, g in zip(parameters.values(), tensors, strict=True):
        parameter.grad = g.clone()
    law = Value(threshold=threshold)
    law.bind({"all": parameters})
    stats = law.apply()
    return [p.grad for p in parameters.values() if p.grad is not None], stats


def test_published_numbers():
    """Source: optax _clipping_test.py and keras optimizer_test.py."""
    out, _ = clip(
        1.0, torch.tensor([500.0, 5.0]), torch.tensor([300.0, 3.0]), torch.tensor([100.0, 100.0])
    )
    assert [t.tolist() for t in out] == [[1, 1]] * 3


def test_what_it_reports():
    """(3, -.5, 0, 4) at 1 -> (1, -.5, 0, 1): two of four elements, lengths and cosine by hand."""
    out, stats = clip(1.0, torch.tensor([3.0, -0.5, 0.0, 4.0]).double())
    assert out[0].tolist() == [1, -0.5, 0, 1]
    fields = {name: values[0].item() for name, values in stats.by_scope().items()}
    raw, clipped = math.sqrt(25.25), 1.5
    assert fields["norm"] == pytest.approx(raw)
    assert fields["norm_clipped"] == pytest.approx(clipped)
    assert fields["cosine"] == pytest.approx(7.25 / (raw * clipped))
    assert fields["coefficient"] == pytest.approx(clipped / raw)
    assert fields["elements"] == 0.5
    assert fields["threshold"] == 1
    assert stats.payer.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_cosine_is_right_where_almost_everything_is_cut_off(dtype: torch.dtype):
    raw = torch.tensor([3e4, -2.0, 7.0, 1e-3]).to(dtype)
    out, stats = clip(1e-3, raw)
    a, b = raw.double(), out[0].double()
    assert stats.by_scope()["cosine"][0] == pytest.approx(
        float(a @ b / a.norm() / b.norm()), rel=1e-6
    )


def test_an_element_at_the_threshold_does_not_change():
    _, stats = clip(1.0, torch.tensor([1.0, -1.0, 1.0000001]))
    assert stats.by_scope()["elements"][0] == pytest.approx(1 / 3)


def test_non_finite_elements():
    """NaN stays and does not count as changed; infinity becomes the threshold, and the raw norm tells."""
    out, stats = clip(2.0, torch.tensor([math.nan, 1.0, 3.0]))
    assert math.isnan(out[0][0])
    assert out[0][1:].tolist() == [1, 2]
    assert stats.by_scope()["elements"][0] == pytest.approx(1 / 3)
    assert stats.by_scope()["coefficient"][0] == 1
    out, stats = clip(2.0, torch.tensor([-math.inf, 1.0]))
    assert out[0].tolist() == [-2, 1]
    assert stats.by_scope()["norm"][0] == math.inf
    assert stats.by_scope()["norm_clipped"][0] == pytest.approx(math.sqrt(5))
    assert stats.by_scope()["coefficient"][0] == 1, "says nothing"


def test_a_threshold_beyond_half_precision_bounds_nothing():
    """torch's clip_grad_value_ raises above 65504."""
    out, _ = clip(1e6, torch.tensor([6e4, -1.0], dtype=torch.float16))
    assert out[0].tolist() == [6e4, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_parity_with_torch(dtype: torch.dtype, threshold: float):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(s, dtype=dtype)) for s in [(30, 7), (7,), ()]]
    theirs = copy.deepcopy(ours)
    law = Value(threshold=threshold)
    law.bind({"all": {str(i): p for i, p in enumerate(ours)}})
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        law.apply()
        torch.nn.utils.clip_grad_value_(theirs, threshold)
        for a, b in zip(ours, theirs, strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert torch.equal(a.grad, b.grad)
            assert a.grad.abs().max() <= threshold
