"""Regression: the gradient of each reduction by hand, metrics against scikit-learn, chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import Tensor

from mmrun.batch import Batch, Output
from mmrun.errors import UserError
from mmrun.objectives.regression import Regression
from mmrun.spec import DatasetSpec

N, F, D = 20, 6, 3


def build(width: int = D, **knobs: Any) -> Regression:
    torch.manual_seed(0)
    spec = DatasetSpec(modalities={}, target="value", target_shape=(width,))
    return Regression(spec, {"a": F}, F, **knobs)


def batch(target: Tensor) -> Batch:
    return Batch({}, {}, {}, target, torch.arange(len(target)))


def draw() -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=make), torch.randn(N, D, generator=make)


@pytest.mark.parametrize(
    ("reduction", "factor", "sums"),
    [("half_sum", 1.0, True), ("sum", 2.0, True), ("mean", 2.0 / (N * D), False)],
)
def test_gradient_is_the_error_times_a_factor(reduction: str, factor: float, sums: bool):
    z, y = draw()
    z.requires_grad_()
    objective = build(reduction=reduction)
    (loss,) = objective.losses(batch(y), Output({}, None, z)).values()
    loss.backward()
    assert objective.sums is sums
    assert z.grad is not None
    torch.testing.assert_close(z.grad, factor * (z - y).detach())
    torch.testing.assert_close(loss, factor / 2 * (z - y).square().sum())


def test_half_sum_is_exact():
    z, y = draw()
    z.requires_grad_()
    (loss,) = build(reduction="half_sum").losses(batch(y), Output({}, None, z)).values()
    loss.backward()
    assert z.grad is not None
    assert torch.equal(z.grad, (z - y).detach())


def test_first_step_of_descent_from_zero_by_hand():
    """One step of W <- W - lr dL/dW from zero: W = lr sum_i y_i x_i^T."""
    objective = build(1, reduction="half_sum", bias=False, init="zero")
    x = torch.tensor([[1.0, 2, 0, 0, 0, 0], [0, 1, 0, 0, 0, 3]])
    y = torch.tensor([[1.0], [2.0]])
    (weight,) = objective.head_parameters()
    assert not weight.any()
    prediction = objective({}, x, batch(y))
    sum(objective.losses(batch(y), Output({}, x, prediction)).values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert weight.grad is not None
    assert weight.grad.tolist() == [[-1.0, -4.0, 0.0, 0.0, 0.0, -6.0]]


@pytest.mark.parametrize("width", [1, D])
@pytest.mark.parametrize("hidden", [[], [8]])
def test_head(width: int, hidden: list[int]):
    objective = build(width, hidden=hidden)
    assert objective({}, torch.randn(4, F), batch(torch.zeros(4, width))).shape == (4, width)
    without = build(width, hidden=hidden, bias=False)
    assert len(list(without.parameters())) == len(list(objective.parameters())) - 1


def test_metrics_are_scikit_learns():
    z, y = draw()
    z = y + 0.5 * z
    metrics = {name: value.item() for name, value in build().metrics(z, y).items()}
    assert metrics["mse"] == pytest.approx(mean_squared_error(y, z), rel=1e-5)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(y, z), rel=1e-5)
    assert metrics["r2"] == pytest.approx(r2_score(y, z), rel=1e-5)
    assert set(metrics) == set(build().higher_is_better)


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_r2_of_constant_targets_is_scikit_learns(error: float):
    y = torch.full((5, 1), 2.0)
    expected = r2_score(y, y + error)
    assert build(1).metrics(y + error, y)["r2"].item() == expected


def test_chance_is_the_error_of_the_mean():
    _, y = draw()
    objective = build()
    value, margin = objective.chance(y)
    guess = y.mean(dim=0).expand_as(y)
    assert margin == 0
    assert value == pytest.approx(objective.metrics(guess, y)["mse"].item(), rel=1e-5)
    assert objective.metrics(guess, y)["r2"].abs() < 1e-5


@pytest.mark.parametrize("knobs", [{"hidden": [-1]}, {"hidden": [4], "init": "zero"}])
def test_knobs_out_of_range_are_the_users_error(knobs: dict[str, Any]):
    with pytest.raises(UserError) as caught:
        build(**knobs)
    assert caught.value.remedy
