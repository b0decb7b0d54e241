"""The smoothness of a quadratic is its Hessian's along the step; and both sides of a step see one dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrun.diagnostics._smoothness import Smoothness
from tests.diagnostics.asides import aside_of, batch_of


class Quadratic(nn.Module):
    """x^T H x / 2 over two parameters; one of them may be hit by dropout, and counts its calls."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        half = torch.randn(5, 5, dtype=torch.float64)
        self.hessian = half @ half.T
        self.a = nn.Parameter(torch.randn(2, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(3, 1, dtype=torch.float64))
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.tensor(0))
        self.dropout = nn.Dropout(p)

    def loss(self, _batch: object) -> torch.Tensor:
        self.calls += 1
        x = self.dropout(torch.cat((self.a, self.b.flatten())))
        return x @ self.hessian @ x / 2


@pytest.mark.parametrize("seed", range(5))
def test_a_quadratic(seed: int):
    torch.manual_seed(seed)
    module = Quadratic()
    parameters = list(module.parameters())
    batch = batch_of(torch.zeros(1, 1))
    aside = aside_of(module, module.loss)
    smoothness = Smoothness(parameters, aside.gradient(batch, parameters))
    start = torch.cat([p.detach().flatten().clone() for p in parameters])
    with torch.no_grad():
        for parameter in parameters:
            parameter += torch.randn_like(parameter)
    step = torch.cat([p.detach().flatten() for p in parameters]) - start
    found, norm = smoothness.along(aside.gradient(batch, parameters))
    hessian = module.hessian
    assert float(found) == pytest.approx(float((hessian @ step).norm() / step.norm()))
    assert float(norm) == pytest.approx(float((hessian @ start).norm()))
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert eigenvalues[0] <= found <= eigenvalues[-1]


def test_along_an_eigenvector_it_is_the_eigenvalue():
    torch.manual_seed(0)
    module = Quadratic()
    parameters = list(module.parameters())
    batch = batch_of(torch.zeros(1, 1))
    aside = aside_of(module, module.loss)
    values, vectors = torch.linalg.eigh(module.hessian)
    for value, vector in zip(values, vectors.T, strict=True):
        smoothness = Smoothness(parameters, aside.gradient(batch, parameters))
        with torch.no_grad():
            module.a += 0.1 * vector[:2]
            module.b += 0.1 * vector[2:].unsqueeze(1)
        found, _ = smoothness.along(aside.gradient(batch, parameters))
        assert float(found) == pytest.approx(float(value), rel=1e-6, abs=1e-9)


def test_a_step_that_goes_nowhere_has_none():
    module = Quadratic()
    parameters = list(module.parameters())
    gradient = aside_of(module, module.loss).gradient(batch_of(torch.zeros(1, 1)), parameters)
    assert Smoothness(parameters, gradient).along(gradient)[0].isnan()


def test_dropout_is_the_same_on_both_sides_and_nothing_is_left_behind():
    torch.manual_seed(0)
    module = Quadratic(p=0.5)
    parameters = list(module.parameters())
    batch = batch_of(torch.zeros(1, 1))
    state = torch.get_rng_state()
    aside = aside_of(module, module.loss)
    sides = []
    for _ in range(2):
        with aside.drawing():
            sides.append([aside.gradient(batch, parameters) for _ in range(8)])
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)  # the step between them draws
        state = torch.get_rng_state()
    for one, other in zip(*sides, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert any(not torch.equal(sides[0][0][0], each[0]) for each in sides[0]), "it drew on"
    assert module.calls == 0
    assert all(parameter.grad is None for parameter in parameters)


def test_an_error_leaves_nothing_behind_either():
    torch.manual_seed(0)
    module = Quadratic(p=0.5)

    def wrong(batch: object) -> torch.Tensor:
        module.loss(batch)
        raise ArithmeticError

    state = torch.get_rng_state()
    aside = aside_of(module, wrong)
    with pytest.raises(ArithmeticError), aside.drawing():
        aside.gradient(batch_of(torch.zeros(1, 1)), list(module.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.calls == 0
