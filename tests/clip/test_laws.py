"""What every law of conf/clip keeps to: parity with its oracle, and the contract of mmrun.clip.law."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mmrun.clip.chain import Chain
from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.noise import Noise
from mmrun.clip.none import Unclipped
from mmrun.clip.norm import Norm
from mmrun.clip.stats import Stats
from mmrun.clip.step import Gradients, InForce
from mmrun.errors import UserError
from tests.oracles import OPTIONS, ORACLES, SETTINGS, STOCHASTIC, build, knobs

Named = dict[str, dict[str, nn.Parameter]]
SHAPES = {
    "image": {"conv": (4, 3, 2, 2), "bias": (4,)},
    "text": {"table": (7, 5), "scale": ()},
    "fusion": {"mix": (6, 9), "gate": (1,)},
}
each_law = pytest.mark.parametrize(("option", "variant"), SETTINGS, ids=str)
each_exact_law = pytest.mark.parametrize(
    ("option", "variant"), [(o, v) for o, v in SETTINGS if o not in STOCHASTIC], ids=str
)
each_stochastic_law = pytest.mark.parametrize(
    ("option", "variant"), [(o, v) for o, v in SETTINGS if o in STOCHASTIC], ids=str
)
# A difference of numbers is as exact as they are, however small it is.
DIFFERENCES = {"centralize", "clip21", "chain"}
few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e-6, 1e-2, 1.0, 30.0, 1e4])


def parameters(dtype: torch.dtype = torch.float64) -> Named:
    torch.manual_seed(0)
    return {
        scope: {
            name: nn.Parameter(torch.randn(shape, dtype=dtype)) for name, shape in named.items()
        }
        for scope, named in SHAPES.items()
    }


def fill(bound: Named, seed: int, scale: float, absent: float = 0.0, zero: float = 0.0) -> None:
    """Random gradients; some absent, some all zero; scopes of very different length."""
    generator = np.random.default_rng(seed)
    for k, named in enumerate(bound.values()):
        for p in named.values():
            gradient = scale * 10.0**-k * generator.standard_normal(tuple(p.shape))
            draw = generator.random(2)
            p.grad = torch.tensor(gradient * (draw[0] >= zero), dtype=p.dtype)
            if draw[1] < absent:
                p.grad = None


def arrays(bound: Named) -> dict[str, dict[str, np.ndarray]]:
    return {
        scope: {n: p.grad.double().numpy().copy() for n, p in named.items() if p.grad is not None}
        for scope, named in bound.items()
    }


def joined(gradients: dict[str, dict[str, np.ndarray]], scope: str | None = None) -> np.ndarray:
    kept = [gradients[s] for s in gradients if scope is None or s == scope]
    return np.concatenate([np.zeros(0), *(g.ravel() for named in kept for g in named.values())])


def bits(bound: Named) -> list[bytes]:
    return [
        b"" if p.grad is None else p.grad.numpy().tobytes()
        for n in bound.values()
        for p in n.values()
    ]


def test_every_law_has_an_oracle_and_a_name():
    assert OPTIONS, "no laws found"
    assert not [option for option in OPTIONS if option not in ORACLES]
    assert [build(option).algorithm for option in OPTIONS] == OPTIONS


@each_exact_law
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=str
)
@few
@given(seed=seeds, scale=scales)
def test_parity_with_the_oracle(
    option: str, variant: dict[str, Any], dtype: torch.dtype, rtol: float, seed: int, scale: float
):
    """A training of five steps, with absent and zero gradients."""
    bound, law = parameters(dtype), build(option, **variant)
    law.bind(bound)
    raw, clipped = [], []
    for step in range(5):
        fill(bound, seed + step, scale * 3**step, absent=0.3, zero=0.2)
        raw.append(arrays(bound))
        law.apply()
        clipped.append(arrays(bound))
    weights = {s: {n: p.detach().numpy() for n, p in named.items()} for s, named in bound.items()}
    expected = ORACLES[option](raw, weights, **knobs(option, **variant))
    for before, got, want in zip(raw, clipped, expected, strict=True):
        for scope in want:
            assert got[scope].keys() == want[scope].keys()
            for name, x in want[scope].items():
                largest = max(np.abs(x).max(), np.abs(before[scope][name]).max())
                atol = rtol * largest if option in DIFFERENCES else 0
                np.testing.assert_allclose(got[scope][name], x, rtol=rtol, atol=atol)


@each_stochastic_law
def test_noise_has_the_oracles_mean_and_variance(option: str, variant: dict[str, Any]):
    """Over 40000 elements, at three steps; other numbers at each step and in each parameter, the same from one seed."""
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        names = ("a", "b", "unused")
        bound = {"image": {n: nn.Parameter(torch.zeros(200, 200).double()) for n in names}}
        law = build(option, **variant)
        law.bind(bound)
        raw, added = [], []
        for step in range(3):
            for name, p in bound["image"].items():
                scale = 0.0 if name == "unused" else 2.0**step
                p.grad = scale * torch.linspace(-1, 1, p.numel()).double().reshape(p.shape)
            raw.append(arrays(bound))
            law.apply()
            added.append({n: g - raw[-1]["image"][n] for n, g in arrays(bound)["image"].items()})
        outcomes.append(added)
        weights = {"image": {n: p.detach().numpy() for n, p in bound["image"].items()}}
        means = ORACLES[option](raw, weights, **knobs(option, **variant))
        variances = STOCHASTIC[option](raw, weights, **knobs(option, **variant))
        for before, mean, variance, noise in zip(raw, means, variances, added, strict=True):
            for name, x in noise.items():
                sd = np.sqrt(variance["image"][name])
                off = mean["image"][name] - before["image"][name]
                if not sd.any():
                    np.testing.assert_array_equal(x, 0)
                    continue
                z = (x - off) / sd
                assert abs(z.mean()) < 5 / 200  # five standard errors
                assert abs(z.var() - 1) < 5 * math.sqrt(2) / 200
                assert abs((z**4).mean() - 3) < 5 * math.sqrt(96) / 200  # the normal's
        drawn = [x.ravel() for noise in added for name, x in noise.items() if name != "unused"]
        if drawn[0].any():
            assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 5 / 200
    for first, second in zip(*outcomes, strict=True):
        for name, x in first.items():
            np.testing.assert_array_equal(x, second[name])


@each_law
@few
@given(seed=seeds, scale=scales)
def test_statistics_are_those_of_the_gradients(
    option: str, variant: dict[str, Any], seed: int, scale: float
):
    bound, law = parameters(), build(option, **variant)
    law.bind(bound)
    fill(bound, seed, scale, absent=0.2, zero=0.2)
    before = arrays(bound)
    fields = {k: v.numpy() for k, v in law.apply().by_scope().items()}
    after = arrays(bound)
    for row, scope in enumerate([None, *SHAPES]):
        a, b = joined(before, scope), joined(after, scope)
        n, m = np.linalg.norm(a), np.linalg.norm(b)
        want = {
            "norm": n,
            "norm_clipped": m,
            "coefficient": m / n if n else 1.0,
            "cosine": a @ b / (n * m) if n and m else 1.0,
        }
        for field, number in want.items():
            assert fields[field][row] == pytest.approx(number, rel=1e-10), (field, scope)
        # A scaling counts all elements of a tensor that it scaled; random elements are not 0.
        assert fields["elements"][row] == pytest.approx(np.sum(a != b) / max(a.size, 1), rel=1e-12)
    assert fields["norm"][0] ** 2 == pytest.approx(np.sum(fields["norm"][1:] ** 2))


@each_law
def test_zero_absent_and_frozen_gradients(option: str, variant: dict[str, Any]):
    bound, law = parameters(), build(option, **variant)
    bound["missing"] = {}  # an empty scope
    bound["text"]["frozen"] = nn.Parameter(torch.ones(3), requires_grad=False)
    bound["text"]["empty"] = nn.Parameter(torch.ones(0, 3))
    law.bind(bound)
    for seed in range(3):  # something to forget
        fill(bound, seed, 1.0)
        bound["text"]["frozen"].grad = None
        law.apply()
    state = law.state_dict()
    for named in bound.values():
        for p in named.values():
            p.grad = None
    none_at_all = law.apply().by_scope()
    for named in bound.values():
        for p in named.values():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
    zeros = law.apply().by_scope()
    assert all(not g.any() for named in arrays(bound).values() for g in named.values())
    for fields in (none_at_all, zeros):
        assert fields["norm"].tolist() == [0.0] * 5
        assert fields["coefficient"].tolist() == [1.0] * 5
        assert fields["cosine"].tolist() == [1.0] * 5
        assert fields["elements"].tolist() == [0.0] * 5
    assert option in STOCHASTIC or equal(state, law.state_dict())  # noise counts steps


@pytest.mark.parametrize("option", OPTIONS)
def test_nothing_bound(option: str):
    law = build(option)
    law.bind({})
    assert law.apply().by_scope()["norm"].tolist() == [0.0]
    with pytest.raises(RuntimeError, match="bind"):
        build(option).apply()


@each_exact_law
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_step_leaves_no_trace(option: str, variant: dict[str, Any], bad: float):
    """State and later steps are as if the step had not been: it is left out by the engine."""
    outcomes = []
    for interrupted in (False, True):
        bound, law = parameters(), build(option, **variant)
        clipper = Clipper(law)
        clipper.bind(bound)
        for step in range(4):
            if step == 2 and interrupted:
                fill(bound, 99, 1.0)
                gradient = bound["image"]["bias"].grad
                assert gradient is not None
                gradient[1] = bad
                fields = clipper.apply().by_scope()
                assert not any(g.any() for named in arrays(bound).values() for g in named.values())
                assert not math.isfinite(fields["norm"][0])
                assert torch.isfinite(fields["norm"][2:]).all()  # the other scopes' norms
            fill(bound, step, 5.0)
            clipper.apply()
        outcomes.append((bits(bound), law.state_dict()))
    assert outcomes[0][0] == outcomes[1][0]
    assert equal(outcomes[0][1], outcomes[1][1])


@each_exact_law
def test_a_unit_that_is_not_finite_learns_nothing_and_passes(option: str, variant: dict[str, Any]):
    """A law by itself, whatever policy stands before it."""
    bound, law = parameters(), build(option, **variant)
    law.bind(bound)
    for seed in range(3):
        fill(bound, seed, 5.0)
        law.apply()
    state = law.state_dict()
    fill(bound, 3, 5.0)
    for named in bound.values():
        for p in named.values():
            assert p.grad is not None
            p.grad.fill_(math.nan)
    law.apply()
    assert all(np.isnan(g).all() for named in arrays(bound).values() for g in named.values())
    assert equal(state, law.state_dict())


@each_law
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_in_place_and_dtype_kept(option: str, variant: dict[str, Any], dtype: torch.dtype):
    bound, law = parameters(dtype), build(option, **variant)
    bound["image"]["wide"] = nn.Parameter(torch.ones(3, dtype=torch.float32))  # mixed dtypes
    law.bind(bound)
    fill(bound, 0, 3.0)
    held = [(p, p.grad) for named in bound.values() for p in named.values()]
    stats = law.apply()
    for p, gradient in held:
        assert p.grad is gradient
        assert gradient is not None
        assert gradient.dtype == p.dtype
        assert not gradient.requires_grad
        assert gradient.isfinite().all()
    assert stats.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@each_law
def test_no_host_sync(option: str, variant: dict[str, Any]):
    with FakeTensorMode():
        bound, law = parameters(torch.float32), build(option, **variant)
        law.bind(bound)
        for step in range(2):
            for named in bound.values():
                for name, p in named.items():
                    p.grad = None if step and name == "bias" else torch.randn(p.shape)
            law.apply().by_scope()


def test_the_sync_test_can_fail():
    class Syncs(Unclipped):
        def clip(self, gradients: Gradients) -> InForce:
            gradients.raw[0].item()
            return super().clip(gradients)

    with FakeTensorMode():
        bound, law = parameters(torch.float32), Syncs()
        law.bind(bound)
        for named in bound.values():
            for p in named.values():
                p.grad = torch.randn(p.shape)
        with pytest.raises(DataDependentOutputException):
            law.apply()


@each_law
def test_state_survives_a_restart_bit_for_bit(option: str, variant: dict[str, Any]):
    def steps(law: Law, bound: Named, span: range) -> None:
        law.bind(bound)
        for step in span:
            fill(bound, step, 2.0**step, absent=0.2)
            law.apply()

    whole, bound = build(option, **variant), parameters()
    steps(whole, bound, range(6))
    first, resumed = build(option, **variant), build(option, **variant)
    steps(first, parameters(), range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = parameters()
    again["later"] = {"x": nn.Parameter(torch.ones(2))}  # a scope added since changes nothing
    if variant.get("budget", "total") == "total" and variant.get("per", "global") != "global":
        del again["later"]  # but it takes its share of a budget
    if (option, variant.get("per")) == ("agc", "global"):
        del again["later"]  # and its weights are among those that bound everything
    resumed.bind(again)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        fill({s: n for s, n in again.items() if s != "later"}, step, 2.0**step, absent=0.2)
        resumed.apply()
    again.pop("later", None)
    assert bits(again) == bits(bound)


@each_law
def test_order_and_tied_parameters(option: str, variant: dict[str, Any]):
    """The order of parameters does not matter, and a parameter under two names counts once."""
    outcomes = []
    for reverse in (False, True):
        bound, law = parameters(), build(option, **variant)
        order = (
            {s: dict(reversed(n.items())) for s, n in reversed(bound.items())} if reverse else bound
        )
        if reverse:
            order["text"]["tied"] = order["text"]["table"]
        law.bind(order)
        fill(bound, 5, 3.0)
        total = law.apply().by_scope()["norm"][0]
        outcomes.append((joined(arrays(bound)), total))
    np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-12)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1])


@pytest.mark.parametrize("option", OPTIONS)
def test_a_parameter_in_two_scopes_is_refused(option: str):
    bound = parameters()
    bound["fusion"]["tied"] = bound["image"]["conv"]
    with pytest.raises(UserError, match=r"two scopes.*image/conv and fusion/tied.*shared"):
        build(option).bind(bound)


@pytest.mark.parametrize("option", OPTIONS)
def test_complex_gradients_are_refused(option: str):
    with pytest.raises(UserError, match=r"real.*text/z"):
        build(option).bind({"text": {"z": nn.Parameter(torch.ones(2, dtype=torch.complex64))}})


@pytest.mark.parametrize("option", [o for o in OPTIONS if "threshold" in knobs(o)])
@pytest.mark.parametrize("threshold", [math.nan, -1.0, 0.0, -math.inf, "p9x", True, None])
def test_a_threshold_that_bounds_nothing_is_refused(option: str, threshold: Any):
    with pytest.raises(UserError, match=r"clip\.threshold"):
        build(option, threshold=threshold)


def test_what_does_not_change_is_worked_out_once():
    """One plan for each set of parameters that have a gradient, also for sets of equal size."""
    bound, law = parameters(), build("norm")
    law.bind(bound)
    plans = []
    for absent in ("conv", "bias", "conv"):
        fill(bound, 0, 1.0)
        bound["image"][absent].grad = None
        plans.append(law.layout.gather()[0])
        assert plans[-1].sizes.tolist()[:2] == ([0, 4] if absent == "conv" else [48, 0])
    assert plans[0] is plans[2]


def test_state_of_another_law_is_refused():
    law = Norm(1.0)
    law.bind(parameters())
    with pytest.raises(UserError, match=r"keeps no state.*ema"):
        law.load_state_dict({"ema": {"": torch.zeros(1)}})


def test_stacked_statistics_are_the_single_ones():
    """Also over steps at which other parameters have a gradient."""
    bound, law = parameters(), build("norm", threshold=1.0)
    law.bind(bound)
    steps = []
    for seed in range(5):
        fill(bound, seed, 2.0, absent=0.4)
        steps.append(law.apply())
    together = Stats.stack(steps).by_scope()
    for t, single in enumerate(steps):
        for field, values in single.by_scope().items():
            assert torch.equal(together[field][t], values), field


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return bool(a == b)


# The same at every step


@each_law
@pytest.mark.parametrize("floor", [0.0, 1e-9])
def test_statistics_of_a_warm_up_stack(option: str, variant: dict[str, Any], floor: float):
    """Whether a law acts or not, it measures the same pieces."""
    bound = parameters()
    clip = Clipper(build(option, **variant), warmup=2, floor=floor)
    clip.bind(bound)
    steps: list[Stats] = []
    for step in range(4):
        fill(bound, step, 1.0)
        steps.append(clip.apply())
    assert Stats.stack(steps).by_scope()["norm"].shape == (4, 1 + len(bound))


def test_statistics_of_a_chain_that_ends_in_noise_stack():
    bound = parameters()
    clip = Clipper(Chain(Norm(1.0), Noise(0.01)), warmup=1)
    clip.bind(bound)
    steps: list[Stats] = []
    for step in range(2):
        fill(bound, step, 1.0)
        steps.append(clip.apply())
    assert len(Stats.stack(steps).raw) == 2


# What a law learns from


def _numbers(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        return [n for each in state.values() for n in _numbers(each)]
    return [state]


@each_law
@pytest.mark.parametrize("policy", ["engine: zero", "engine: pass", "alone"])
def test_no_law_learns_from_a_step_that_came_not_finite(
    option: str, variant: dict[str, Any], policy: str
):
    """Not from what a policy made of it, nor from its other parameters."""
    bound, law = parameters(), build(option, **variant)
    clip = law if policy == "alone" else Clipper(law, nonfinite=policy[8:])  # pyright: ignore[reportArgumentType]
    clip.bind(bound)
    for step in range(3):
        fill(bound, step, 1.0)
        clip.apply()
    before = law.state_dict()
    fill(bound, 9, 1.0)
    gradient = bound["image"]["conv"].grad
    assert gradient is not None
    gradient[0, 0, 0, 0] = math.nan
    clip.apply()
    after = law.state_dict()
    assert all(map(torch.equal, _numbers(before), _numbers(after)))
    if policy == "engine: zero":
        assert all(p.grad.isfinite().all() for n in bound.values() for p in n.values() if p.grad is not None)  # fmt: skip
