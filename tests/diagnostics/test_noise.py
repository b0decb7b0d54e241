"""The noise scale of a linear model, whose per-sample gradients are its inputs: exact and in the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmrun.diagnostics._noise import NoiseScale, variance_and_square
from tests.diagnostics.asides import Linear, aside_of, batch_of

MEAN = torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64)
DEVIATION = torch.tensor([0.5, 3.0, 1.0, 2.0], dtype=torch.float64)
VARIANCE, SQUARE = 14.25, 5.25  # tr S and |G|^2 of samples MEAN + DEVIATION * N(0, 1)


def samples(n: int, generator: torch.Generator) -> torch.Tensor:
    return MEAN + DEVIATION * torch.randn(n, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("size", "parts"), [(12, 2), (13, 4), (16, 8)])
@pytest.mark.parametrize("sums", [False, True])
def test_unbiased_for_any_parts(size: int, parts: int, sums: bool):
    """The mean of many measurements, within four of its standard errors; the noise scale is their ratio."""
    generator = torch.Generator().manual_seed(0)
    module = Linear(4)
    loss = (lambda b: module.loss(b) * len(b.index)) if sums else module.loss
    aside = aside_of(module, loss, sums=sums)
    noise = NoiseScale(0.999)
    found, scale = [], math.nan
    for _ in range(1500):
        batch = batch_of(samples(size, generator))
        variance, square = variance_and_square(aside, batch, [module.weight], parts)
        found.append((float(variance), float(square)))
        scale = noise.update(*found[-1])
    error = np.std(found, axis=0) / len(found) ** 0.5
    assert np.all(error < (0.4, 0.2))
    assert np.all(np.abs(np.mean(found, axis=0) - (VARIANCE, SQUARE)) < 4 * error)
    assert scale == pytest.approx(VARIANCE / SQUARE, rel=0.15)


def test_the_formula_of_the_paper_for_equal_parts():
    """|G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b), tr S = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)."""
    x = samples(20, torch.Generator().manual_seed(3))
    module = Linear(4)
    aside = aside_of(module, module.loss)
    variance, square = variance_and_square(aside, batch_of(x), [module.weight], 4)
    small = x.reshape(4, 5, 4).mean(1).square().sum(1).mean()
    big = x.mean(0).square().sum()
    assert float(variance) == pytest.approx(float((small - big) / (1 / 5 - 1 / 20)))
    assert float(square) == pytest.approx(float((20 * big - 5 * small) / (20 - 5)))
    assert module.weight.grad is None


def test_unequal_parts_by_hand():
    x = samples(7, torch.Generator().manual_seed(4))
    module = Linear(4)
    variance, _ = variance_and_square(
        aside_of(module, module.loss), batch_of(x), [module.weight], 3
    )
    parts = [x[:2], x[2:4], x[4:]]
    expected = sum(len(p) * float((p.mean(0) - x.mean(0)).square().sum()) for p in parts) / 2
    assert float(variance) == pytest.approx(expected)


def test_equal_samples_have_no_noise():
    module = Linear(4)
    batch = batch_of(MEAN.expand(8, 4))
    variance, square = variance_and_square(aside_of(module, module.loss), batch, [module.weight], 4)
    assert float(variance) == pytest.approx(0, abs=1e-12)
    assert float(square) == pytest.approx(SQUARE)


def test_parts_have_dropout_of_their_own():
    """Equal samples under dropout: the noise is that of dropout, variance p/(1-p) of each element."""
    module = Linear(4)

    def loss(batch):
        return (torch.dropout(batch.inputs["x"], 0.5, train=True) @ module.weight).mean()

    found = []
    for seed in range(300):
        torch.manual_seed(seed)
        aside = aside_of(module, loss)
        with aside.drawing():
            batch = batch_of(MEAN.expand(16, 4))
            found.append(variance_and_square(aside, batch, [module.weight], 4)[0].item())
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - SQUARE) < 4 * error


def test_a_batch_too_small_to_be_parted():
    module = Linear(4)
    aside = aside_of(module, module.loss)
    for size, nan in ((1, True), (3, True), (4, False)):
        batch = batch_of(samples(size, torch.Generator().manual_seed(0)))
        values = variance_and_square(aside, batch, [module.weight], 4)
        assert [bool(value.isnan()) for value in values] == [nan, nan]


def test_running_means():
    noise = NoiseScale(0.5)
    assert noise.update(8.0, 4.0) == 2.0
    assert noise.update(2.0, 2.0) == pytest.approx((2 + 1) / (1 + 1))
    kept = noise.update(math.nan, 1.0)
    assert kept == pytest.approx(1.5), "a measurement that is none changes nothing"
    again = NoiseScale(0.5)
    again.load_state_dict(noise.state_dict())
    assert again.update(1.0, 1.0) == noise.update(1.0, 1.0)
    assert math.isnan(NoiseScale(0.0).update(1.0, -1.0))
