"""Published and hand-computed numbers of every law: of its oracle, and of the law itself.

A row is a gradient of one or several steps and what must come out. Numbers are given to as many digits as their source
does; where those are too few for a relative 1e-6, a row says how far off they may be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles import OPTIONS, ORACLES, Arrays, Trajectory, build, config
from tests.oracles.adaptive import Quantile, ZScore
from tests.oracles.units import length

INF = math.inf
Clip = Callable[..., Trajectory]


def one(*tensors: Any) -> Arrays:
    """Tensors in one scope."""
    return {"a": {f"p{i}": np.array(t, np.float64) for i, t in enumerate(tensors)}}


def scopes(*tensors: Any) -> Arrays:
    """Each tensor in a scope of its own."""
    return {f"s{i}": {"p": np.array(t, np.float64)} for i, t in enumerate(tensors)}


def along(*norms: float) -> Trajectory:
    """Steps of these norms, along (0.6, 0.8)."""
    return [one([0.6 * n, 0.8 * n]) for n in norms]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; weights are zeros where a law does not look at them."""

    name: str
    option: str
    knobs: dict[str, Any]
    raw: Trajectory
    want: Trajectory
    weights: Arrays | None = None
    atol: float = 0.0
    exact: bool = field(default=False)


def by_oracle(
    option: str, raw: Trajectory, weights: Arrays | None = None, **knobs: Any
) -> Trajectory:
    given = weights or {s: {n: np.zeros_like(g) for n, g in d.items()} for s, d in raw[0].items()}
    return ORACLES[option](raw, given, **knobs)


def by_law(
    option: str,
    raw: Trajectory,
    weights: Arrays | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    **knobs: Any,
) -> Trajectory:
    if option not in OPTIONS:
        pytest.skip(f"conf/clip/{option}.yaml does not exist yet")
    if later := set(knobs) - set(config(option)):
        pytest.skip(f"conf/clip/{option}.yaml does not have {', '.join(later)} yet")
    given = weights or {s: {n: np.zeros_like(g) for n, g in d.items()} for s, d in raw[0].items()}
    bound = {
        s: {n: nn.Parameter(torch.tensor(w, dtype=dtype)) for n, w in d.items()}
        for s, d in given.items()
    }
    law = build(option, **knobs)
    law.bind(bound)
    out: Trajectory = []
    for step in raw:
        for scope, named in bound.items():
            for name, p in named.items():
                p.grad = torch.tensor(step[scope][name], dtype=dtype)
        law.apply()
        out.append(
            {
                s: {n: p.grad.double().numpy().copy() for n, p in d.items() if p.grad is not None}
                for s, d in bound.items()
            }
        )
    return out


def in_float32(*args: Any, **knobs: Any) -> Trajectory:
    return by_law(*args, dtype=torch.float32, **knobs)


each_way = pytest.mark.parametrize("clip", [by_oracle, by_law, in_float32])


def close(got: Trajectory, want: Trajectory, rtol: float = 1e-6, atol: float = 0.0) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for scope in b:
            assert a[scope].keys() == b[scope].keys()
            for name, x in b[scope].items():
                np.testing.assert_allclose(a[scope][name], x, rtol=rtol, atol=atol)


ROWS = [
    Row(
        name="norm 1 of (3, 4)",
        option="norm",
        knobs={"threshold": 1.0},
        raw=[one([3, 4])],
        want=[one([0.6, 0.8])],
    ),
    Row(
        name="norm 5 of (3, 4)",
        option="norm",
        knobs={"threshold": 5.0},
        raw=[one([3, 4])],
        want=[one([3, 4])],
        exact=True,
    ),
    Row(
        name="norm, p infinite",
        option="norm",
        knobs={"threshold": 1.0, "p": INF},
        raw=[one([3, -4], [1])],
        want=[one([0.75, -1], [0.25])],
    ),
    Row(
        name="norm, p 1",
        option="norm",
        knobs={"threshold": 1.0, "p": 1.0},
        raw=[one([3, -4], [1])],
        want=[one([0.375, -0.5], [0.125])],
    ),
    Row(
        name="value, optax _clipping_test.py",
        option="value",
        knobs={"threshold": 1.0},
        raw=[one([500, 5], [300, 3])],
        want=[one([1, 1], [1, 1])],
    ),
    Row(
        name="value, keras optimizer_test.py",
        option="value",
        knobs={"threshold": 1.0},
        raw=[one([100, 100])],
        want=[one([1, 1])],
    ),
    Row(
        name="norm per tensor, keras optimizer_test.py clipnorm",
        option="norm",
        knobs={"threshold": 1.0, "per": "tensor", "budget": "each"},
        raw=[one([100, 100])],
        want=[one([0.70710678, 0.70710678])],
    ),
    Row(
        name="norm, keras optimizer_test.py global_clipnorm",
        option="norm",
        knobs={"threshold": 1.0},
        raw=[one([50], [100])],
        want=[one([0.44721360], [0.89442719])],
    ),
    Row(
        name="norm per tensor",
        option="norm",
        knobs={"threshold": 1.0, "per": "tensor", "budget": "each"},
        raw=[one([3, 4], [0.3, 0.4])],
        want=[one([0.6, 0.8], [0.3, 0.4])],
    ),
    Row(
        name="block rms, optax _clipping_test.py",
        option="block_rms",
        knobs={"threshold": 1.0},
        raw=[one([500, 5])],
        want=[one([1.4141423, 0.0141414])],
        atol=5e-8,
    ),
    Row(
        name="agc by rows, one of them of zero weights",
        option="agc",
        knobs={"threshold": 0.01, "eps": 1e-3},
        weights=one([[3, 4], [0.6, 0.8], [0, 0]]),
        raw=[one([[30, 40], [0.001, 0], [3, 4]])],
        want=[one([[0.03, 0.04], [0.001, 0], [6e-6, 8e-6]])],
    ),
    Row(
        name="agc that has nothing to do, optax _adaptive_clipping_test.py",
        option="agc",
        knobs={"threshold": 2.0},
        weights=one(np.ones((6, 5))),
        raw=[one(np.full((6, 5), 0.1))],
        want=[one(np.full((6, 5), 0.1))],
        exact=True,
    ),
    Row(
        name="smooth",
        option="smooth",
        knobs={"threshold": 5.0},
        raw=[one([3, 4])],
        want=[one([1.5, 2])],
    ),
    Row(
        name="norm 2, then smooth 1",
        option="chain",
        knobs={"threshold": 1.0, "laws": ["norm_2", "smooth"]},
        raw=[one([3, 4])],
        want=[one([0.4, 0.53333333])],
    ),
    Row(
        name="autoclip, 10th percentile",
        option="autoclip",
        knobs={"threshold": 10.0},
        raw=along(1, 2, 3, 4, 10),
        want=along(1, 1.1, 1.2, 1.3, 1.4),
    ),
    Row(
        name="autoclip, median, a NaN ignored",
        option="autoclip",
        knobs={"threshold": 50.0},
        raw=along(1, 2, math.nan, 9),
        want=along(1, 1.5, math.nan, 2),
    ),
    Row(
        name="quantile",
        option="quantile",
        knobs={"threshold": 0.5, "rate": 0.2, "initial": 1.0},
        raw=along(2, 0.5, 2, 9),
        want=along(1, 0.5, 1, 1.1051709),
    ),
    # gamma after the steps is (1, inf), (.44721359, .89442718), (.44766080, .89532161): the third and the fourth output
    # are 1.05 times the second and the third.
    Row(
        name="adagc",
        option="adagc",
        knobs={"warmup_steps": 2, "threshold": 1.05, "beta": 0.98},
        raw=[
            one([3, 4], [0, 0]),
            one([0.3, 0.4], [0.6, 0.8]),
            one([3, 4], [0.6, 0.8]),
            one([3, 4], [0.6, 0.8]),
        ],
        want=[
            one([0.6, 0.8], [0, 0]),
            one([0.26832816, 0.35777089], [0.53665632, 0.71554178]),
            one([0.28174454, 0.37565941], [0.56348914, 0.75131881]),
            one(
                [0.6 * 1.05 * 0.44766080, 0.8 * 1.05 * 0.44766080],
                [0.6 * 1.05 * 0.89532161, 0.8 * 1.05 * 0.89532161],
            ),
        ],
    ),
    # gamma is (1, inf) after the warm-up of one step: 1.05 does not bound the first tensor's .5, the other passes at
    # the first norm that it has, and from then on that counts: (.99, 1), then 1.05 times that.
    Row(
        name="adagc, a tensor that the warm-up did not see",
        option="adagc",
        knobs={"warmup_steps": 1, "threshold": 1.05, "beta": 0.98},
        raw=[one([3, 4], [0, 0]), one([0.3, 0.4], [0.6, 0.8]), one([3, 4], [6, 8])],
        want=[
            one([0.6, 0.8], [0, 0]),
            one([0.3, 0.4], [0.6, 0.8]),
            one([0.6 * 1.0395, 0.8 * 1.0395], [0.63, 0.84]),
        ],
    ),
    # sqrt(10)^2 / 1000 makes v = .01.
    Row(
        name="spike",
        option="spike",
        knobs={"threshold": 5000.0, "beta": 0.999, "warmup_steps": 1},
        raw=[one([math.sqrt(10), math.sqrt(10)]), one([10, -5])],
        want=[one([math.sqrt(10), math.sqrt(10)]), one([7.0710678, -5])],
    ),
    Row(
        name="adagn",
        option="adagn",
        knobs={"threshold": 1.0, "beta1": 0.7, "beta2": 0.9},
        raw=[one([3, 4]), one([6, 8])],
        want=[one([0.6, 0.8]), one([0.593396, 0.791195])],
        atol=5e-7,
    ),
    Row(
        name="adaclip",
        option="adaclip",
        knobs={"threshold": 1.0, "beta": 0.999},
        raw=[one([1, 0.5]), one([-100, 50])],
        want=[one([1, 0.5]), one([-50.524762, 50])],
    ),
    Row(
        name="centralize, optax docstring",
        option="centralize",
        knobs={},
        raw=[one([[1, 2, 3], [4, 5, 6]], [7, 8])],
        want=[one([[-1, 0, 1], [-1, 0, 1]], [7, 8])],
    ),
    Row(
        name="clip21",
        option="clip21",
        knobs={"threshold": 2.0},
        raw=[one([3, 4])] * 5,
        want=[one([1.2, 1.6]), one([2.4, 3.2]), *[one([3, 4])] * 3],
    ),
]
# Mean 1 and variance .25 of the norms .5 and 1.5, then 3: the response, the mean and variance after it.
Z_SCORES = [
    ("adaptive", 1.5000010, 1.015000, 0.24955678),
    ("mean", 1.0, 1.0, 0.2425),
    ("percentile", 2.0, 1.03, 0.270727),
]


@each_way
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, clip: Clip):
    # float32 rounds to 6e-8, a few times over.
    rtol = 0.0 if row.exact and clip is not in_float32 else 1e-6
    out = clip(row.option, row.raw, row.weights, **row.knobs)
    close(out, row.want, rtol=rtol, atol=row.atol)


@pytest.mark.parametrize(("p", "norm"), [(2.0, 5.0), (INF, 4.0), (1.0, 8.0)])
def test_raw_norms(p: float, norm: float):
    flat = np.array([3.0, 4.0] if p == 2 else [3.0, -4.0, 1.0])
    assert length(flat, p) == pytest.approx(norm, rel=1e-12)


@each_way
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
def test_pytorch_test_clip_grad(p: float, norm: float, scale: float, clip: Clip):
    """Source: pytorch test/nn/test_clip_grad.py, at norm 2: one ratio for all elements; short ones stay."""
    raw = one(np.arange(1.0, 101).reshape(10, 10), np.ones(10) / 1000)
    assert length(np.concatenate([g.ravel() for g in raw["a"].values()]), p) == pytest.approx(
        norm, rel=3e-9
    )
    ((named,),) = [step.values() for step in clip("norm", [raw], threshold=2.0, p=p)]
    ratios = np.concatenate([(named[n] / g).ravel() for n, g in raw["a"].items()])
    assert ratios.mean() == pytest.approx(scale, rel=1e-6)
    assert ratios.std() < (1e-6 if clip is in_float32 else 1e-12) * scale
    generator = np.random.default_rng(0)
    short = one(generator.random((10, 10)) / 10000, np.ones(10) / 500)
    out = clip("norm", [short], threshold=2.0, p=p)
    close(out, [short], rtol=1e-6 if clip is in_float32 else 0.0)


@each_way
def test_optax_clip_by_global_norm(clip: Clip):
    """Source: optax _clipping_test.py: the norm is 1/i, and clipping again and again is clipping once."""
    raw = again = one([500, 5], [300, 3])
    for i in range(1, 51):
        (direct,) = clip("norm", [raw], threshold=1 / i)
        (again,) = clip("norm", [again], threshold=1 / i)
        flat = np.concatenate(list(direct["a"].values()))
        assert length(flat) == pytest.approx(1 / i, abs=5e-7)
        close([again], [direct], rtol=3e-6 if clip is in_float32 else 1e-12)


@each_way
def test_optax_adaptive_grad_clip(clip: Clip):
    """Source: optax _adaptive_clipping_test.py: gradient 3, weight 1, 5 x 6 with its units along axis 1, clip .5.

    Here the units are rows of dimension 0, so 6 x 5: each of length 3 sqrt 5, to be at most .5 sqrt 5.
    """
    (out,) = clip("agc", [one(np.full((6, 5), 3.0))], one(np.ones((6, 5))), threshold=0.5)
    lengths = np.linalg.norm(out["a"]["p0"], axis=1)
    assert (lengths <= 0.5 * math.sqrt(5) * (1 + 1e-6)).all()
    np.testing.assert_allclose(out["a"]["p0"], 0.5, rtol=1e-6)


def test_optax_adaptive_grad_clip_along_another_axis():
    out = by_oracle(
        "agc", [one(np.full((5, 6), 3.0))], one(np.ones((5, 6))), threshold=0.5, axes={"a/p0": 1}
    )
    lengths = np.linalg.norm(out[0]["a"]["p0"], axis=0)
    np.testing.assert_allclose(lengths, 0.5 * math.sqrt(5), rtol=1e-12)


@pytest.mark.parametrize(("response", "output", "mean", "var"), Z_SCORES)
def test_zclip_mean_and_variance(response: str, output: float, mean: float, var: float):
    rule = ZScore(z=2.0, beta=0.97, response=response, warmup=2, eps=1e-6, sd_floor=0.0)
    assert [rule.limit(0.5), rule.limit(1.5)] == [INF, INF]
    assert (rule.mean, rule.var) == (1.0, 0.25)
    assert rule.limit(3.0) == pytest.approx(output, rel=1e-7)
    assert rule.mean == pytest.approx(mean, rel=1e-7)
    assert rule.var == pytest.approx(var, rel=1e-7)


@each_way
@pytest.mark.parametrize(("response", "output", "mean", "var"), Z_SCORES)
@pytest.mark.parametrize("probe", [9.0, 50.0])
def test_zclip(response: str, output: float, mean: float, var: float, probe: float, clip: Clip):
    """A norm further out shows which mean and variance the step left."""
    sd = math.sqrt(var)
    after = {
        "adaptive": mean + 2 * sd * 2 * (sd + 1e-6) / (probe - mean),
        "mean": mean,
        "percentile": mean + 2 * sd,
    }[response]
    knobs = {"threshold": 2.0, "beta": 0.97, "warmup_steps": 2, "response": response}
    out = clip("zclip", along(0.5, 1.5, 3.0, probe), **knobs)
    close(out, along(0.5, 1.5, output, after), rtol=2e-6)


@each_way
@pytest.mark.parametrize("probe", [9.0, 50.0])
def test_zclip_warm_up_and_infinity(probe: float, clip: Clip):
    """Norms 1 to 5 make mean 3 and variance 2, infinity changes neither, and 100 is a spike."""
    mean, sd = 3.0038660, math.sqrt(1.9404688)
    after = mean + 2.5 * sd * 2.5 * (sd + 1e-6) / (probe - mean)
    raw = [*along(1, 2, 3, 4, 5), one([INF, 1.0]), *along(100, probe)]
    want = [*along(1, 2, 3, 4, 5), one([INF, 1.0]), *along(3.1288662, after)]
    close(clip("zclip", raw, threshold=2.5, beta=0.97, warmup_steps=5), want, rtol=2e-6)


def test_zclip_state_of_the_warm_up():
    rule = ZScore(z=2.5, beta=0.97, response="adaptive", warmup=5, eps=1e-6, sd_floor=0.0)
    assert [rule.limit(n) for n in (1, 2, 3, 4, 5)] == [INF] * 5
    assert (rule.mean, rule.var) == (3.0, 2.0)
    assert rule.limit(100.0) == pytest.approx(3.1288662, rel=1e-7)
    assert rule.mean == pytest.approx(3.0038660, rel=1e-7)
    assert rule.var == pytest.approx(1.9404688, rel=1e-7)


def test_quantile_bounds():
    rule = Quantile(gamma=0.5, rate=0.2, initial=1.0, lowest=1e-12)
    bounds = []
    for n in (2.0, 0.5, 2.0):
        rule.limit(n)
        bounds.append(rule.c)
    assert bounds == pytest.approx([1.1051709, 1.0, 1.1051709], rel=1e-7)


def adamw(raw: Trajectory, start: list[float]) -> np.ndarray:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with torch's defaults and lr 0.1."""
    p = np.array(start)
    m = v = np.zeros_like(p)
    for t, step in enumerate(raw, 1):
        g = step["a"]["p0"]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        mean, square = m / (1 - 0.9**t), v / (1 - 0.999**t)
        p = p * (1 - 0.1 * 0.01) - 0.1 * mean / (np.sqrt(square) + 1e-8)
    return p


FOLD_RAW, FOLD_WEIGHTS = [one([3, 4]), one([6, 8])], [0.79810101, 1.79610205]


@each_way
def test_fused_adamw_after_the_clip(clip: Clip):
    out = clip("norm", FOLD_RAW, threshold=1.0)
    np.testing.assert_allclose(adamw(out, [1, 2]), FOLD_WEIGHTS, rtol=1e-6)
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.AdamW([p], lr=0.1, fused=True)
    for step in out:
        p.grad = torch.tensor(step["a"]["p0"], dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), FOLD_WEIGHTS, rtol=1e-6)


def test_fused_adamw_with_the_clip_folded_in():
    """The coefficient as grad_scale gives the same weights; found_inf leaves them."""
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer: Any = torch.optim.AdamW([p], lr=0.1, fused=True)
    clipped = by_oracle("norm", FOLD_RAW, threshold=1.0)
    optimizer.found_inf = torch.tensor(0.0)
    for before, after in zip(FOLD_RAW, clipped, strict=True):
        raw, coefficient = before["a"]["p0"], after["a"]["p0"][0] / before["a"]["p0"][0]
        optimizer.grad_scale = torch.tensor(1 / coefficient, dtype=torch.float32)
        p.grad = torch.tensor(raw, dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), FOLD_WEIGHTS, rtol=1e-6)
    kept = p.detach().clone()
    optimizer.found_inf = torch.tensor(1.0)
    p.grad = torch.tensor([6.0, 8.0])
    optimizer.step()
    assert torch.equal(p.detach(), kept)


# What follows has no row in a paper: each number is worked out in the comment beside it.
HAND = [
    # (3, 4) of length 5 to .5, up to eps; zeros stay
    Row(
        name="normalize",
        option="normalize",
        knobs={"threshold": 0.5, "per": "tensor", "budget": "each", "eps": 0.0},
        raw=[one([3, 4], [0, 0], [0.003, 0.004])],
        want=[one([0.3, 0.4], [0, 0], [0.3, 0.4])],
    ),
    # .5 / (5 + .5) of (3, 4)
    Row(
        name="normalize, eps",
        option="normalize",
        knobs={"threshold": 0.5, "eps": 0.5},
        raw=[one([3, 4])],
        want=[one([1.5 / 5.5, 2 / 5.5])],
    ),
    # Two units share 2 as sqrt(2) each, also at a step at which one of them has nothing to clip
    Row(
        name="norm, budget in equal parts",
        option="norm",
        knobs={"threshold": 2.0, "per": "modality"},
        raw=[scopes([3], [-4]), scopes([3], [0])],
        want=[scopes([1.4142136], [-1.4142136]), scopes([1.4142136], [0])],
    ),
    # Sum of c^p is 2^p: 2 / 2^(1/3) each
    Row(
        name="norm, budget in equal parts, p 3",
        option="norm",
        knobs={"threshold": 2.0, "per": "tensor", "p": 3.0},
        raw=[one([3], [-4])],
        want=[one([1.5874011], [-1.5874011])],
    ),
    # 1 of 4 elements gets sqrt(1/4) * 2 = 1, 3 of 4 get sqrt(3/4) * 2 = 1.7320508
    Row(
        name="norm, budget by size",
        option="norm",
        knobs={"threshold": 2.0, "per": "modality", "split": "size"},
        raw=[scopes([9], [30, 40, 0])],
        want=[scopes([1], [0.6 * 1.7320508, 0.8 * 1.7320508, 0])],
    ),
    # Shares of n^2: 9 and 16 of 25, so 2.5 is shared as 1.5 and 2. Then the means are .99*9+.01*900 = 17.91 and (kept,
    # for want of a norm) 16: 2.5 sqrt(17.91 / 33.91) = 1.8168702
    Row(
        name="norm, budget by norm",
        option="norm",
        knobs={"threshold": 2.5, "per": "modality", "split": "norm"},
        raw=[scopes([3], [4]), scopes([30], [0])],
        want=[scopes([1.5], [2]), scopes([1.8168702], [0])],
    ),
    # ema 1, bound 1.5, ema .5*1+.5*1.5 = 1.25, bound 1.875
    Row(
        name="ema",
        option="ema",
        knobs={"threshold": 1.5, "beta": 0.5},
        raw=along(1, 4, 4),
        want=along(1, 1.5, 1.875),
    ),
    # bound .5 before there is a mean; then ema .5, bound .75
    Row(
        name="ema, bounded from the start",
        option="ema",
        knobs={"threshold": 1.5, "beta": 0.5, "initial": 0.5},
        raw=along(1, 4),
        want=along(0.5, 0.75),
    ),
    # (1, 3): mean 2, unbiased sd sqrt 2, so 4.8 < 2 + 2 sqrt 2 = 4.828 passes; (1, 3, 4.8): mean 2.9333, sd 1.9009, so
    # 7 > 6.735 is skipped; (1, 3, 4.8, 7): mean 3.95, sd 2.5580, so 9 < 9.066 passes; (3, 4.8, 7, 9): mean 5.95, sd
    # 2.6096, so 11.2 > 11.169 is skipped (with the first norm still in the window it would pass, below 11.287).
    Row(
        name="skip",
        option="skip",
        knobs={"threshold": 2.0, "window": 4},
        raw=along(1, 3, 4.8, 7, 9, 11.2),
        want=along(1, 3, 4.8, 0, 9, 0),
    ),
    # m = .1 g, tau = .01 |g|, both not corrected: the ratio is .1. Then g = (2, -1): m = .09 + .2 and .18 - .1,
    # tau = .0099 + .02 and .0198 + .01: the ratios are .0299 / .29 and .0298 / .08
    Row(
        name="coordinate",
        option="coordinate",
        knobs={"threshold": 1.0, "eps": 0.0},
        raw=[one([1, 2]), one([2, -1])],
        want=[one([0.1, 0.2]), one([2 * 0.0299 / 0.29, -0.0298 / 0.08])],
    ),
    # The first of two laws learns from the raw gradient, the second from what is left: ema sees 1, then 1
    Row(
        name="norm 1, then ema",
        option="chain",
        knobs={"threshold": 1.5, "laws": ["norm_1", "ema"]},
        raw=along(5, 100),
        want=along(1, 1),
    ),
    # The other way round: ema passes 5 and bounds 100 by 7.5, then 2 bounds both
    Row(
        name="ema, then norm 2",
        option="chain",
        knobs={"threshold": 2.0, "laws": ["ema", "norm"]},
        raw=along(1, 100),
        want=along(1, 1.5),
    ),
    Row(
        name="the objective's head has no agc",
        option="agc",
        knobs={},
        weights={"image": {"w": np.ones((1, 1))}, "objective": {"w": np.ones((1, 1))}},
        raw=[{"image": {"w": np.ones((1, 1))}, "objective": {"w": np.ones((1, 1))}}],
        want=[{"image": {"w": np.full((1, 1), 0.01)}, "objective": {"w": np.ones((1, 1))}}],
    ),
    # The median of the last two norms
    Row(
        name="autoclip, window",
        option="autoclip",
        knobs={"threshold": 50.0, "window": 2},
        raw=along(1, 2, 9),
        want=along(1, 1.5, 5.5),
    ),
    # 1 exp(-1.5) = .22 is raised to .9
    Row(
        name="quantile, lowest",
        option="quantile",
        knobs={"threshold": 0.5, "rate": 3.0, "initial": 1.0, "lowest": 0.9},
        raw=along(0.5, 2),
        want=along(0.5, 0.9),
    ),
    # Mean 1, sd .5 counts as 2: 1 + .5 * 2. Then mean 1.03, sd .52 counts as 2.06: 1.03 + .5 * 2.06
    Row(
        name="zclip, floor of the deviation",
        option="zclip",
        knobs={"threshold": 0.5, "warmup_steps": 2, "sd_floor": 2.0, "response": "percentile"},
        raw=along(0.5, 1.5, 3, 50),
        want=along(0.5, 1.5, 2, 2.06),
    ),
    # The bound is 50.52: 80 is above it, and is scaled as the largest is
    Row(
        name="adaclip, two elements above the bound",
        option="adaclip",
        knobs={"threshold": 1.0, "beta": 0.999},
        raw=[one([1, 0.5, 0]), one([-100, 80, 50])],
        want=[one([1, 0.5, 0]), one([-50.524762, 40.4198096, 50])],
    ),
    # v = .25, bound 1; v = .75*.25 + .25*1 of the clipped one, bound sqrt(4*.4375). An element that was always 0 has no
    # measure, and passes; then v = 2.25 and the bound is 3.
    Row(
        name="spike, an element without a past",
        option="spike",
        knobs={"threshold": 4.0, "beta": 0.75, "warmup_steps": 1},
        raw=[one([1, 0]), one([3, 3]), one([-3, -4])],
        want=[one([1, 0]), one([1, 3]), one([-1.3228757, -3])],
    ),
]


@each_way
@pytest.mark.parametrize("row", HAND, ids=lambda row: row.name)
def test_by_hand(row: Row, clip: Clip):
    close(clip(row.option, row.raw, row.weights, **row.knobs), row.want, rtol=1e-6, atol=row.atol)


def test_every_law_but_none_and_noise_has_a_row():
    """Noise is random: its oracle says its variance, which test_laws.py measures."""
    here = {row.option for row in itertools.chain(ROWS, HAND)} | {"zclip"}
    assert here == set(ORACLES) - {"none", "noise"}
