"""Schedules: the numbers of torch's own where there is one, and shares at chosen steps elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from mmrun import schedules
from mmrun.errors import UserError

LR = 0.3


def optimizer(**settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9, **settings)


def rates(made: Any, steps: int) -> list[float]:
    """Learning rates in force at steps 0, 1, ..., as a training sees them."""
    found = []
    for _ in range(steps):
        found.append(made.optimizer.param_groups[0]["lr"])
        made.optimizer.step()
        made.step()
    return found


def ours(law: Callable[..., Any], total: int, **knobs: Any) -> list[float]:
    return rates(law(optimizer(), total, **knobs), total)


@pytest.mark.parametrize("total", [10, 57, 340])
@pytest.mark.parametrize(("warmup", "start", "final"), [(0.3, 0.04, 4e-6), (0.5, 0.1, 0.001)])
def test_onecycle_is_torch_s(total: int, warmup: float, start: float, final: float):
    theirs = OneCycleLR(
        optimizer(),
        max_lr=LR,
        total_steps=total,
        pct_start=warmup,
        div_factor=1 / start,
        final_div_factor=start / final,
        cycle_momentum=False,
    )
    got = ours(schedules.onecycle, total, warmup=warmup, start=start, final=final)
    assert got == pytest.approx(rates(theirs, total), rel=1e-12)
    assert theirs.optimizer.param_groups[0]["momentum"] == 0.9


def test_onecycle_defaults_are_those_of_its_file():
    got = ours(schedules.onecycle, 100)
    assert got[0] == pytest.approx(0.04 * LR)
    assert max(got) == pytest.approx(LR)
    assert got.index(max(got)) == 29
    assert got[-1] == pytest.approx(4e-6 * LR)


@pytest.mark.parametrize("total", [1, 7, 100])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torch_s(total: int, final: float):
    theirs = CosineAnnealingLR(optimizer(), T_max=total, eta_min=final * LR)
    got = ours(schedules.cosine, total, final=final)
    assert got == pytest.approx(rates(theirs, total), rel=1e-10, abs=1e-15)


def test_warmup_cosine():
    got = ours(schedules.warmup_cosine, 100, warmup=0.1, final=0.2)
    assert got[:10] == pytest.approx([LR * (k + 1) / 11 for k in range(10)])
    assert got[10] == pytest.approx(LR)
    half = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 45 / 90))
    assert got[55] == pytest.approx(LR * half)
    assert got == sorted(got[:11]) + sorted(got[11:], reverse=True)


def test_warmup_of_nothing_is_the_cosine():
    assert ours(schedules.warmup_cosine, 30, warmup=0.0) == ours(schedules.cosine, 30)


def test_constant():
    assert ours(schedules.constant, 20) == [LR] * 20


def test_step():
    got = ours(schedules.step, 20, at=[0.5, 0.75], factor=0.1)
    assert got == pytest.approx([LR] * 10 + [0.1 * LR] * 5 + [0.01 * LR] * 5)
    assert ours(schedules.step, 20, at=[0.5, 0.5], factor=0.5)[10] == pytest.approx(LR / 4)


@pytest.mark.parametrize(
    "law", [schedules.onecycle, schedules.cosine, schedules.warmup_cosine, schedules.constant]
)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_trainings_have_finite_rates(law: Callable[..., Any], total: int):
    got = ours(law, total)
    assert all(0 <= rate <= LR for rate in got)
    assert rates(law(optimizer(), total), total + 3)[-1] >= 0, "past its end too"


@pytest.mark.parametrize(
    ("law", "knobs"),
    [
        (schedules.onecycle, {}),
        (schedules.cosine, {}),
        (schedules.warmup_cosine, {}),
        (schedules.step, {"at": [0.5, 0.75]}),
    ],
)
def test_a_resumed_schedule_follows_its_new_length(law: Callable[..., Any], knobs: dict[str, Any]):
    """Saved at step 40 of 100 and restored into a length of 200: from there on as if it had always been."""
    short = law(optimizer(), 100, **knobs)
    rates(short, 40)
    longer = law(optimizer(), 200, **knobs)
    longer.optimizer.load_state_dict(short.optimizer.state_dict())
    longer.load_state_dict(short.state_dict())
    longer.optimizer.step()
    longer.step()
    expected = ours(law, 200, **knobs)[41:]
    assert rates(longer, len(expected)) == pytest.approx(expected, rel=1e-12)


def test_groups_keep_their_own_rates():
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    both = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 2.0}], lr=1.0)
    made = schedules.cosine(both, 10)
    for _ in range(5):
        both.step()
        made.step()
    assert [g["lr"] for g in both.param_groups] == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(
    ("law", "knobs", "name"),
    [
        (schedules.cosine, {"final": -0.1}, "schedule.final"),
        (schedules.onecycle, {"warmup": 1.5}, "schedule.warmup"),
        (schedules.onecycle, {"start": math.nan}, "schedule.start"),
        (schedules.warmup_cosine, {"final": 2}, "schedule.final"),
        (schedules.step, {"at": [0.5, 7]}, "schedule.at"),
    ],
)
def test_a_share_out_of_range_is_refused(law: Callable[..., Any], knobs: dict[str, Any], name: str):
    with pytest.raises(UserError, match=name):
        law(optimizer(), 10, **knobs)
