"""Norm clipping: published numbers, parity with torch, and the properties of a hard cap."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmrun.clip.norm import Norm
from mmrun.clip.stats import Stats
from mmrun.clip.step import Gradients
from mmrun.errors import UserError

INF = math.inf


def clip(law: Norm, *scopes: list[Tensor]) -> tuple[list[list[Tensor]], Stats]:
    """Clipped gradients by scope; raw ones are given by scope."""
    bound = {
        f"s{k}": {f"p{i}": nn.Parameter(torch.zeros_like(g)) for i, g in enumerate(scope)}
        for k, scope in enumerate(scopes)
    }
    for named, scope in zip(bound.values(), scopes, strict=True):
        for p, g in zip(named.values(), scope, strict=True):
            p.grad = g.clone()
    law.bind(bound)
    stats = law.apply()
    out = [[p.grad for p in named.values() if p.grad is not None] for named in bound.values()]
    return out, stats


def one(law: Norm, *tensors: list[float]) -> list[list[float]]:
    """Clipped gradients of tensors in one scope."""
    (out,), _ = clip(law, [torch.tensor(t, dtype=torch.float64) for t in tensors])
    return [t.tolist() for t in out]


def test_three_four_five():
    assert one(Norm(threshold=1), [3, 4]) == [pytest.approx([0.6, 0.8])]
    _, stats = clip(Norm(threshold=1), [torch.tensor([3.0, 4.0])])
    fields = stats.by_scope()
    assert fields["norm"].tolist() == [5, 5]
    assert fields["norm_clipped"].tolist() == pytest.approx([1, 1])
    assert fields["coefficient"].tolist() == pytest.approx([0.2, 0.2])
    assert fields["elements"].tolist() == [1, 1]
    assert fields["threshold"].tolist() == [1, 1]


def test_at_the_threshold_bits_are_kept_and_eps_is_torch():
    assert one(Norm(threshold=5), [3, 4]) == [[3, 4]]
    assert one(Norm(threshold=5, eps=1e-6), [3, 4]) == [
        pytest.approx([2.9999994, 3.9999992], abs=1e-9)
    ]
    # Without eps a tiny bound is kept exactly; torch's 1e-6 makes the result half as long.
    assert one(Norm(threshold=1e-7), [1e-6]) == [pytest.approx([1e-7])]
    assert one(Norm(threshold=1e-7, eps=1e-6), [1e-6]) == [pytest.approx([5e-8])]


def test_other_norms():
    assert one(Norm(threshold=1, p=INF), [3, -4], [1]) == [[0.75, -1.0], [0.25]]
    assert one(Norm(threshold=1, p=1), [3, -4], [1]) == [[0.375, -0.5], [0.125]]


@pytest.mark.parametrize("per", ["global", "modality", "tensor", "unit"])
@pytest.mark.parametrize("p", [0.1, 20.0, 100.0, 1000.0])
def test_powers_beyond_float32(p: float, per: Any):
    """Elements near 0.05: from p 35 on their powers vanish in float32, and with them the norm."""
    raw = [0.05 * torch.arange(-3.0, 5.0).reshape(4, 2), torch.tensor([0.01, -0.07])]
    (first,), (second,) = clip(Norm(0.01, p=p, per=per, budget="each"), [raw[0]], [raw[1]])[0]
    units = {"global": [torch.cat([g.ravel() for g in raw])], "unit": [*raw[0], raw[1]]}
    wanted = 0.0
    for unit in units.get(per, raw):
        largest = unit.double().abs().max()
        length = largest * ((unit.double().abs() / largest) ** p).sum() ** (1 / p)
        wanted += float((unit.double() * min(1.0, 0.01 / length)).square().sum())
    got = first.double().square().sum() + second.double().square().sum()
    assert got.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("p", "norm", "scale"),
    [
        (0.5, 451287.2598, 4.4317670e-6),
        (1.5, 1179.357405, 1.6958388e-3),
        (2.0, 581.678605, 3.4383248e-3),
        (4.0, 212.792402, 9.3988318e-3),
        (INF, 100.0, 0.02),
    ],
)
def test_numbers_of_pytorch_test_clip_grad_norm(p: float, norm: float, scale: float):
    """Source: pytorch test/test_nn.py, test_clip_grad_norm."""
    raw = [torch.arange(1.0, 101).view(10, 10).double(), torch.ones(10).double() / 1000]
    parameters = {str(i): nn.Parameter(torch.zeros_like(g)) for i, g in enumerate(raw)}
    for parameter, g in zip(parameters.values(), raw, strict=True):
        parameter.grad = g.clone()
    law = Norm(threshold=2.0, p=p)
    law.bind({"all": parameters})
    assert Gradients(*law.layout.gather()).joint(p)[0] == pytest.approx(norm, rel=1e-7)
    law.apply()
    ratios = torch.cat(
        [
            (p.grad / g).view(-1)
            for p, g in zip(parameters.values(), raw, strict=True)
            if p.grad is not None
        ]
    )
    assert ratios.mean() == pytest.approx(scale, rel=1e-7)
    assert ratios.std() == pytest.approx(0.0, abs=1e-16)
    small = [torch.rand(10, 10).double() / 10000, torch.ones(10).double() / 500]
    (out,), _ = clip(Norm(threshold=2.0 if p > 0.6 else 1e4, p=p), small)
    assert all(torch.equal(a, b) for a, b in zip(out, small, strict=True))


def test_numbers_of_keras():
    """Source: keras optimizer_test.py: clipnorm is per tensor, global_clipnorm is over all."""
    assert one(Norm(threshold=1, per="tensor", budget="each"), [100, 100]) == [
        pytest.approx([0.70710678, 0.70710678])
    ]
    assert one(Norm(threshold=1), [50.0], [100.0]) == [
        pytest.approx([0.44721360]),
        pytest.approx([0.89442719]),
    ]


def test_numbers_of_optax():
    """Source: optax _clipping_test.py: norm is 1/i, and clipping again equals clipping once."""
    raw = [torch.tensor([500.0, 5.0]).double(), torch.tensor([300.0, 3.0]).double()]
    again = raw
    for i in range(1, 51):
        (direct,), stats = clip(Norm(threshold=1 / i), raw)
        assert stats.by_scope()["norm_clipped"][0] == pytest.approx(1 / i)
        (again,), _ = clip(Norm(threshold=1 / i), again)
        for a, b in zip(direct, again, strict=True):
            torch.testing.assert_close(a, b)


def test_per_tensor_and_per_scope_budgets():
    """With ``total`` each of K units gets c / K^(1/p): two units, p 2, c sqrt 2 -> 1 each."""
    raw = [[torch.tensor([3.0, 4.0])], [torch.tensor([0.3, 0.4])]]
    for per in ("modality", "tensor"):
        for law in (
            Norm(threshold=1, per=per, budget="each"),
            Norm(threshold=math.sqrt(2), per=per, budget="total"),
            Norm(threshold=2, p=2, per=per, budget="total", eps=0.0),
        ):
            (first, second), stats = clip(law, *raw)
            bound = 1 if law.threshold < 2 else math.sqrt(2)
            torch.testing.assert_close(first[0], torch.tensor([0.6, 0.8]) * bound)
            assert torch.equal(second[0], raw[1][0])
            fields = stats.by_scope()
            assert fields["threshold"].tolist() == pytest.approx(
                [bound * math.sqrt(2), bound, bound]
            )
            assert fields["elements"].tolist() == [0.5, 1, 0]
            assert stats.payer.tolist() == [1, 1]
    # p = inf: the largest element is bounded by c however the gradient is cut up
    _, stats = clip(Norm(threshold=1, p=INF, per="modality"), *raw)
    assert stats.threshold.tolist() == [1, 1, 1]


def test_who_made_the_others_pay():
    """Lengths 4 and 3, c 2.5: both are halved; alone the first needed .625, the second 2.5/3, a third nothing."""
    raw = [[torch.tensor([4.0])], [torch.tensor([3.0])], [torch.tensor([0.0])]]
    _, stats = clip(Norm(threshold=2.5), *raw)
    assert stats.payer.tolist() == pytest.approx([0.5 / 0.625, 0.5 / (2.5 / 3), 1])
    _, stats = clip(Norm(threshold=10), *raw)
    assert stats.payer.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_zeroes(dtype: torch.dtype):
    """100 times 1e4: torch's clip_grad_norm_ finds inf in float16 and zeroes every gradient."""
    (out,), stats = clip(Norm(threshold=1), [torch.full((100,), 1e4, dtype=dtype)])
    assert out[0].dtype == dtype
    assert torch.equal(out[0], torch.full((100,), 0.1, dtype=dtype))
    (out,), stats = clip(
        Norm(threshold=1), [torch.full((1,), 1e4, dtype=dtype) for _ in range(100)]
    )
    assert torch.equal(out[0], torch.full((1,), 0.1, dtype=dtype))
    assert stats.by_scope()["norm"][0] == pytest.approx(1e5, rel=2e-3)


def test_a_long_gradient_of_many_tensors_does_not_overflow():
    """Each norm fits float32, the sum of their squares does not."""
    (out,), _ = clip(Norm(threshold=1), [torch.tensor([3e18]), torch.tensor([4e18])] * 100)
    assert out[0].item() == pytest.approx(0.06)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("per", ["global", "modality", "tensor"])
def test_a_non_finite_unit_passes_and_the_others_are_clipped(per: Any, bad: float):
    raw = [[torch.tensor([3.0, 4.0]), torch.tensor([bad, 2.0])], [torch.tensor([6.0, 8.0])]]
    (first, second), stats = clip(Norm(threshold=1, per=per, budget="each"), *raw)
    torch.testing.assert_close(first[1], raw[0][1], equal_nan=True, rtol=0, atol=0)
    passes = per != "tensor"
    assert torch.equal(first[0], raw[0][0]) is passes
    assert torch.equal(second[0], raw[1][0]) is (per == "global")
    fields = stats.by_scope()
    assert fields["coefficient"][0] == 1
    assert fields["norm"][2] == 10


def step_gradients(generator: torch.Generator, steps: int) -> list[list[Tensor]]:
    shapes = [(20, 10), (20,), (3, 4, 5), ()]
    return [
        [torch.randn(s, generator=generator, dtype=torch.float64) * 3.0**t for s in shapes]
        for t in range(-3, steps - 3)
    ]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, INF])
def test_parity_with_torch_over_a_training(p: float):
    """SGD with momentum on given gradients, clipped by torch and by eps=1e-6: the same weights to 1e-12."""
    generator = torch.Generator().manual_seed(0)
    trajectory = step_gradients(generator, 10)
    ours = [nn.Parameter(torch.ones_like(g)) for g in trajectory[0]]
    theirs = copy.deepcopy(ours)
    law = Norm(threshold=1.0, p=p, eps=1e-6)
    law.bind({"a": {"x": ours[0], "y": ours[1]}, "b": {"x": ours[2], "y": ours[3]}})
    optimizers = [torch.optim.SGD(ps, lr=0.1, momentum=0.9) for ps in (ours, theirs)]
    clipped_once = False
    for gradients in trajectory:
        for ps in (ours, theirs):
            for parameter, g in zip(ps, gradients, strict=True):
                parameter.grad = g.clone()
        torch_norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0, norm_type=p)
        stats = law.apply()
        if p == 2:
            assert stats.by_scope()["norm"][0] == pytest.approx(torch_norm.item(), rel=1e-14)
        clipped_once |= bool(torch_norm > 1)
        for optimizer in optimizers:
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert clipped_once


gradients = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=4), min_size=1, max_size=4
)
bounds = st.floats(1e-3, 1e3)
orders = st.sampled_from([1.0, 2.0, 3.0, INF])
pers = st.sampled_from(["global", "modality", "tensor"])
many = settings(max_examples=60, deadline=None)


def scopes_of(values: list[list[float]]) -> list[list[Tensor]]:
    """The first tensor is a scope, the others make up another."""
    tensors = [torch.tensor(v, dtype=torch.float64) for v in values]
    return [tensors[:1], tensors[1:]]


def flat(scopes: list[list[Tensor]]) -> Tensor:
    return torch.cat([t for scope in scopes for t in scope])


@many
@given(values=gradients, c=bounds, p=orders, per=pers)
def test_bound_direction_and_idempotence(values: list[list[float]], c: float, p: float, per: Any):
    raw = scopes_of(values)
    out, _ = clip(Norm(threshold=c, p=p, per=per), *raw)
    length = torch.linalg.vector_norm(flat(out), p)
    assert length <= c * (1 + 1e-6)  # total budget: for every granularity
    for a, b in zip([t for s in raw for t in s], [t for s in out for t in s], strict=True):
        assert (b.abs() <= a.abs()).all()
        assert (a * b >= 0).all()
        na, nb = a.norm(), b.norm()
        assert a @ b >= na * nb * (1 - 1e-12)
    again, _ = clip(Norm(threshold=c, p=p, per=per), *out)
    torch.testing.assert_close(flat(again), flat(out), rtol=1e-12, atol=0)


@many
@given(values=gradients, p=orders, per=pers)
def test_identity_is_exact(values: list[list[float]], p: float, per: Any):
    raw = scopes_of(values)
    enough = max(float(torch.linalg.vector_norm(flat(raw), p)), 1e-300)
    for c in (INF, enough * 8):
        out, stats = clip(Norm(threshold=c, p=p, per=per, budget="each"), *raw)
        assert flat(out).numpy().tobytes() == flat(raw).numpy().tobytes()
        assert not stats.by_scope()["elements"].any()


@many
@given(values=gradients, c=bounds, d=bounds, per=pers, a=st.sampled_from([1e-3, 0.5, 64.0]))
def test_composition_monotony_and_homogeneity(
    values: list[list[float]], c: float, d: float, per: Any, a: float
):
    raw = scopes_of(values)
    low, high = sorted((c, d))
    tight, _ = clip(Norm(threshold=low, per=per), *raw)
    loose, _ = clip(Norm(threshold=high, per=per), *raw)
    both, _ = clip(Norm(threshold=low, per=per), *loose)
    torch.testing.assert_close(flat(both), flat(tight), rtol=1e-12, atol=0)
    assert flat(tight).norm() <= flat(loose).norm() * (1 + 1e-12)
    scaled, _ = clip(Norm(threshold=a * low, per=per), *[[a * t for t in s] for s in raw])
    torch.testing.assert_close(flat(scaled), a * flat(tight), rtol=1e-12, atol=0)


@many
@given(values=gradients, c=bounds)
def test_scopes_do_not_touch_each_other_and_splitting_changes_nothing(
    values: list[list[float]], c: float
):
    raw = scopes_of(values)
    other = [raw[0], [7 * t for t in raw[1]]]
    law = Norm(threshold=c, per="modality", budget="each")
    (first, _), _ = clip(law, *raw)
    (same, _), _ = clip(law, *other)
    assert torch.equal(first[0], same[0])
    whole, _ = clip(Norm(threshold=c), [flat(raw)])
    split, _ = clip(Norm(threshold=c), *raw)
    torch.testing.assert_close(flat(split), whole[0][0], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"p": 0}, r"clip\.p "),
        ({"p": -2}, r"clip\.p "),
        ({"p": math.nan}, r"clip\.p "),
        (
            {"per": "row"},
            r"clip=norm has no clip\.per=row.*Available: global, modality, tensor, unit",
        ),
        ({"per": "modaltiy"}, r"Did you mean modality"),
        ({"budget": "eahc"}, r"clip\.budget.*Did you mean each"),
        ({"eps": -1e-6}, r"clip\.eps"),
        ({"eps": math.nan}, r"clip\.eps"),
    ],
)
def test_refused(knobs: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        Norm(threshold=1.0, **knobs)


def test_an_order_whose_norms_are_no_numbers_is_refused():
    with pytest.raises(UserError, match=r"clip\.p is so small"):
        Norm(threshold=1.0, p=1e-3, per="modality")


def test_frozen_parameters_take_no_share():
    bound = {s: {"w": nn.Parameter(torch.ones(1))} for s in "abcde"}
    bound["e"]["w"].requires_grad_(False)
    bound["a"]["w"].grad = torch.tensor([9.0])
    law = Norm(threshold=1.0, per="modality")
    law.bind(bound)
    assert law.apply().threshold[1] == 0.5  # 1 / sqrt(4), whoever has a gradient at this step
