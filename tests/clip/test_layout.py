"""What is known of a set of gradients: it must not outlive the set, nor be cut short, nor pile up."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmrun.clip
from mmrun.clip import Clipper
from mmrun.clip.bounded import Bounded
from mmrun.clip.buckets import _cuts  # pyright: ignore[reportPrivateUsage]
from mmrun.clip.engine import Scopes
from mmrun.clip.law import Law
from mmrun.clip.layout import PLANS, Layout
from mmrun.clip.norm import Norm
from mmrun.clip.normalize import Normalize
from mmrun.clip.smooth import Smooth
from mmrun.clip.value import Value
from mmrun.errors import UserError

INF = math.inf
PERS = ["global", "modality", "tensor", "unit"]
LAWS = [Norm, Normalize, Smooth]


def two() -> tuple[Scopes, nn.Parameter, nn.Parameter]:
    back, head = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2, 3))
    return {"back": {"w": back}, "head": {"w": head}}, back, head


def given(back: nn.Parameter, head: nn.Parameter) -> None:
    for p in (back, head):
        p.grad = torch.ones_like(p) if p.requires_grad else None


# Frozen, and unfrozen later


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("kind", [{}, {"split": "size"}, {"split": "norm"}, {"budget": "each"}])
@pytest.mark.parametrize("called", [True, False])
def test_what_is_unfrozen_later_has_its_share(law: Any, per: Any, kind: Any, called: bool):
    scopes, back, head = two()
    back.requires_grad_(False)
    late = law(0.5, per=per, **kind)
    if not called:  # as a run does
        late.bind(scopes)
    given(back, head)
    _ = late(scopes) if called else late.apply()
    back.requires_grad_(True)
    given(back, head)
    stats = late(scopes) if called else late.apply()
    ours = [back.grad, head.grad]
    fresh = law(0.5, per=per, **kind)
    given(back, head)
    want = fresh(scopes)
    for here, p in zip(ours, (back, head), strict=True):
        assert here is not None
        assert p.grad is not None
        assert here.abs().min() > 0
        if kind.get("split") != "norm":  # which has learnt from the step before
            assert torch.equal(here, p.grad)
    if kind.get("split") != "norm":
        assert torch.equal(stats.threshold, want.threshold)


def test_what_is_unfrozen_counts_before_it_has_a_gradient():
    scopes, back, head = two()
    back.requires_grad_(False)
    law = Norm(1.0, per="modality")
    for share in (1.0, math.sqrt(0.5)):
        head.grad = torch.ones_like(head)
        law(scopes)
        assert head.grad.norm() == pytest.approx(share)
        back.requires_grad_(True)


def test_a_frozen_parameter_with_a_gradient_is_not_cut_to_nothing():
    scopes, back, head = two()
    given(back, head)
    back.requires_grad_(False)
    Norm(1.0, per="modality")(scopes)
    assert back.grad is not None
    assert back.grad.norm() == pytest.approx(math.sqrt(0.5))


def test_shares_by_norm_of_a_first_step_that_is_finite_in_part():
    scopes, back, head = two()
    given(back, head)
    assert head.grad is not None
    head.grad[0, 0] = INF
    Norm(1.0, per="modality", split="norm")(scopes)
    assert back.grad is not None
    assert back.grad.norm() == pytest.approx(1.0)


def test_freezing_gives_the_share_to_the_others():
    scopes, back, head = two()
    law = Norm(1.0, per="tensor")
    given(back, head)
    law(scopes)
    back.requires_grad_(False)
    given(back, head)
    law(scopes)
    assert head.grad is not None
    assert head.grad.norm() == pytest.approx(1.0)


# One precision for what is told


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("split", ["equal", "size", "norm"])
@pytest.mark.parametrize("p", [0.5, 2.0, INF])
@pytest.mark.parametrize("threshold", [0.5, INF])
def test_every_kind_of_bound_works_and_is_told_in_float64(
    law: Any, per: Any, split: Any, p: float, threshold: float
):
    scopes, back, head = two()
    given(back, head)
    bound: Bounded = law(threshold, per=per, split=split, p=p)
    stats = bound(scopes)
    told = (stats.raw, stats.clipped, stats.inner, stats.changed)
    told += (stats.threshold, stats.payer, stats.elements)
    assert {each.dtype for each in told} == {torch.float64}
    assert back.grad is not None
    if threshold == INF:
        assert torch.equal(back.grad, torch.ones_like(back))
        assert stats.threshold.tolist() == [INF] * 3


@pytest.mark.parametrize("name", ["AGC", "BlockRMS", "EMA", "AutoClip", "ZClip", "Quantile"])
def test_other_scalings_are_told_in_float64(name: str):
    scopes, back, head = two()
    law: Law = getattr(mmrun.clip, name)(0.5)
    given(back, head)
    stats = law(scopes)
    assert stats.threshold.dtype == stats.payer.dtype == torch.float64


def test_agc_of_everything_is_told_in_float64():
    scopes, back, head = two()
    given(back, head)
    stats = mmrun.clip.AGC(0.5, per="global", exclude=["head"])(scopes)
    assert stats.threshold.dtype == stats.payer.dtype == torch.float64


def test_shares_by_size_of_everything_are_the_whole():
    scopes, back, head = two()
    given(back, head)
    Norm(1.0, split="size")(scopes)
    assert back.grad is not None
    assert head.grad is not None
    assert back.grad.square().sum() + head.grad.square().sum() == pytest.approx(1.0)


# A set of gradients is known by all that tells it from another


def test_a_part_that_becomes_half_precision_is_measured_in_float32():
    scopes, back, head = two()
    law = Norm(1.0)
    given(back, head)
    law(scopes)
    head.grad = None
    head.data = head.data.half()
    back.grad, head.grad = torch.ones_like(back), torch.full_like(head, 6e4)
    stats = law(scopes)
    assert math.isfinite(stats["norm"][""])
    assert stats["norm_clipped"][""] == pytest.approx(1.0, rel=1e-3)


def test_a_part_that_becomes_double_is_measured_in_float64():
    scopes, back, head = two()
    law = Norm(1.0)
    given(back, head)
    law(scopes)
    head.grad = None
    head.data = head.data.double()
    back.grad, head.grad = torch.ones_like(back), torch.full_like(head, 1e30)
    assert law(scopes)["norm_clipped"][""] == pytest.approx(1.0)


# Nothing piles up


def test_plans_of_ever_new_sets_do_not_pile_up():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(8)]
    layout = Layout({"s": {str(k): p for k, p in enumerate(parameters)}})
    for step in range(3 * PLANS):
        for k, p in enumerate(parameters):
            p.grad = torch.ones(2) if step >> k & 1 else None
        layout.gather()
        assert len(layout._plans) <= PLANS  # pyright: ignore[reportPrivateUsage]


def test_the_plan_that_is_used_most_stays():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(8)]
    layout = Layout({"s": {str(k): p for k, p in enumerate(parameters)}})
    every: list[Tensor | None] = [torch.ones(2)] * 8
    first, _ = layout.plan(every)
    for step in range(3 * PLANS):
        layout.plan([g if step >> k & 1 else None for k, g in enumerate(every)])
        assert layout.plan(every)[0] is first


def test_buckets_of_sparse_gradients_do_not_pile_up():
    table = nn.Embedding(100, 2, sparse=True)
    law = Value(0.1)
    for n in range(1, 20):
        table.zero_grad()
        table(torch.arange(n)).sum().backward()
        law({"text": table})
        assert table.weight.grad is not None
        assert table.weight.grad.coalesce().values().max() == pytest.approx(0.1)
    plan, _ = law.layout.gather()
    assert len(_cuts.get(plan, {})) <= 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_law_in_use_can_be_copied(copied: Any):
    scopes, back, head = two()
    law = Norm(1.0, per="tensor")
    given(back, head)
    law(scopes)
    other = copied(law)
    given(back, head)
    assert other(scopes)["norm_clipped"][""] == pytest.approx(1.0)
    assert other.layout._plans.most == PLANS


# Complex parameters


@pytest.mark.parametrize("bound", [Norm(1.0), Clipper(Norm(1.0))])
def test_a_frozen_complex_parameter_is_left_alone_until_it_is_trained(bound: Norm | Clipper):
    bound = copy.deepcopy(bound)
    weight = nn.Parameter(torch.ones(2))
    filters = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    scopes = {"s": {"weight": weight, "filters": filters}}
    bound.bind(scopes)
    weight.grad = torch.ones(2)
    bound.apply()
    assert weight.grad.norm() == pytest.approx(1.0)
    filters.requires_grad_(True)
    with pytest.raises(UserError, match="real gradients"):
        bound.apply()
    with pytest.raises(UserError, match="s/filters"):
        Norm(1.0)(scopes)
