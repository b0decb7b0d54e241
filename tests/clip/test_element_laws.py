"""Laws that change elements: published numbers, what they remember of each element, and when they learn nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmrun.clip.adaclip import AdaClip
from mmrun.clip.anatomy import anatomy
from mmrun.clip.centralize import Centralize
from mmrun.clip.clip21 import Clip21
from mmrun.clip.coordinate import Coordinate
from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.noise import Noise
from mmrun.clip.spike import Spike
from mmrun.errors import UserError

Named = dict[str, dict[str, nn.Parameter]]
INF = math.inf
LAWS: dict[str, Callable[[float], Law]] = {
    "spike": lambda c: Spike(4.0 * c, warmup_steps=1, beta=0.9),
    "adaclip": lambda c: AdaClip(c, beta=0.9),
    "coordinate": lambda c: Coordinate(c, alpha=1.5),
    "clip21": lambda c: Clip21(c, per="modality"),
}
STATEFUL = pytest.mark.parametrize("name", LAWS)
SHAPES = {"image": {"w": (4, 3), "b": (4,)}, "text": {"w": (5, 2), "scale": ()}}


def parameters(dtype: torch.dtype = torch.float64) -> Named:
    return {
        s: {n: nn.Parameter(torch.ones(shape, dtype=dtype)) for n, shape in named.items()}
        for s, named in SHAPES.items()
    }


def fill(bound: Named, step: int, scale: float = 1.0) -> None:
    """Gradients that follow from the step and the parameter's name; some steps are spikes."""
    for scope, named in bound.items():
        for name, p in named.items():
            seed = [step, *f"{scope}/{name}".encode()]
            gradient = np.random.default_rng(seed).standard_normal(tuple(p.shape))
            p.grad = torch.tensor(scale * gradient * 50.0 ** (step % 3 == 2)).to(p.dtype)


def gradients(bound: Named) -> dict[str, Tensor]:
    every = {f"{s}/{n}": p.grad for s, named in bound.items() for n, p in named.items()}
    return {name: g.clone() for name, g in every.items() if g is not None}


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Bit for bit; NaN equals itself."""
    if a.keys() != b.keys():
        return False
    return all(
        same(a[k], b[k]) if isinstance(a[k], Mapping) else _bits(a[k]) == _bits(b[k]) for k in a
    )


def _bits(tensor: Tensor) -> bytes:
    return torch.where(tensor.isnan(), math.nan, tensor).numpy().tobytes()


def saved(law: Law) -> dict[str, Any]:
    """A law's state through a file."""
    file = io.BytesIO()
    torch.save(law.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def one(law: Law, *steps: list[Any], state: Mapping[str, Any] | None = None) -> list[Any]:
    """What a law makes of one parameter's gradients, step by step."""
    p = nn.Parameter(torch.zeros_like(torch.tensor(steps[0])))
    law.bind({"all": {"p": p}})
    law.load_state_dict(state or {})
    out: list[Any] = []
    for step in steps:
        p.grad = torch.tensor(step)
        law.apply()
        out.append(p.grad.tolist())
    return out


# Published numbers


def test_spike_cuts_what_is_far_above_its_own_mean_square():
    """Source: SPAM's rule at theta 5000, v .01: 10 -> sqrt(50), -5 stays; then v of what is left."""
    law = Spike(5000.0)
    state = {
        "seen": {"all/p": torch.tensor([20.0])},
        "v": {"all/p": torch.tensor([0.01, 0.01, 0.01])},
    }
    (out,) = one(law, [10.0, -5.0, -10.0], state=state)
    assert out == pytest.approx([7.0710678, -5.0, -7.0710678], rel=1e-6)
    expected = [0.999 * 0.01 + 0.001 * 50, 0.999 * 0.01 + 0.001 * 25]
    assert law.state_dict()["v"]["all/p"].tolist()[:2] == pytest.approx(expected, rel=1e-6)


def test_spike_waits_until_it_has_seen_enough_of_a_parameter():
    steps = [[1.0, 1.0], [1e6, 1.0], [1e9, 1.0]]
    out = one(Spike(2.0, warmup_steps=2, beta=0.5), *steps)
    assert out[:2] == steps[:2]
    v = 0.5 * (0.5 * 1.0) + 0.5 * 1e12  # before the third step
    assert out[2] == pytest.approx([math.sqrt(2.0 * v), 1.0])


def test_an_element_that_never_had_a_gradient_is_not_held_at_zero_by_spike():
    """A bound of sqrt(theta 0) would never let it go: rows of an embedding, a modality that was missing."""
    out = one(Spike(5000.0, warmup_steps=1), [1.0, 0.0], [1.0, 3.0], [1.0, 1e3])
    assert out[1] == [1.0, 3.0]
    assert out[2] == pytest.approx([1.0, math.sqrt(5000 * 0.001 * 9)], rel=1e-4)


def test_adaclip_bounds_by_the_mean_of_largest_elements():
    """Source: Stable-SPAM: maxima 1 then 100 -> bounds 1 then 50.524762; what is below the bound stays."""
    law = AdaClip(1.0)
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    law.bind({"all": {"p": p}})
    bounds = []
    for step in ([1.0, 0.5, 0.0], [100.0, -80.0, 50.0]):
        p.grad = torch.tensor(step, dtype=torch.float64)
        bounds.append(law.apply().threshold.tolist())
    assert bounds == [pytest.approx([1.0] * 2), pytest.approx([50.524762] * 2)]
    assert p.grad is not None
    assert p.grad.tolist() == pytest.approx([50.524762, -80 * 0.50524762, 50.0])


def test_coordinate_by_hand():
    """m = .1, tau = .01 of the first gradient: a tenth passes, whatever the sign; then where the mean cancels, all."""
    out = one(Coordinate(1.0), [1.0, -2.0], [1.0, 1.8])
    assert out[0] == pytest.approx([0.1, -0.2])
    assert out[1] == pytest.approx([(0.99 * 0.01 + 0.01) / (0.09 + 0.1), 1.8])
    (out,) = one(Coordinate(3.0, alpha=2.0), [1.0, -2.0])
    assert out == [1.0, -2.0]  # tau = .1 |g|
    assert one(Coordinate(3.0, eps=0.0), [1.0, 0.0])[0] == [pytest.approx(0.3), 0.0]
    (out,) = one(Coordinate(0.5, alpha=2.0), [1.0, -2.0])
    assert out == pytest.approx([0.5, -1.0])


def test_clip21_lets_a_steady_gradient_through_in_full():
    out = one(Clip21(2.0), *[[3.0, 4.0]] * 4)
    assert out[:2] == [pytest.approx([1.2, 1.6]), pytest.approx([2.4, 3.2])]
    assert out[2:] == [[3.0, 4.0]] * 2  # bit for bit
    assert one(Clip21(INF), [0.1, 0.7], [0.3, -9.1]) == one(Spike(INF), [0.1, 0.7], [0.3, -9.1])


def test_clip21_shares_its_bound_by_unit():
    outcomes = {}
    for per in ("global", "modality", "tensor"):
        bound, law = parameters(), Clip21(1.0, per=per)
        law.bind(bound)
        for named in bound.values():
            for p in named.values():
                p.grad = torch.full_like(p, 3.0)
        law.apply()
        outcomes[per] = {name: float(g.norm()) for name, g in gradients(bound).items()}
    sizes = {"image/w": 12, "image/b": 4, "text/w": 10, "text/scale": 1}
    everything, image, text = 27, 16, 11
    for name, size in sizes.items():
        scope = image if name.startswith("image") else text
        assert outcomes["global"][name] == pytest.approx(math.sqrt(size / everything))
        assert outcomes["modality"][name] == pytest.approx(math.sqrt(size / scope))
        assert outcomes["tensor"][name] == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"no clip\.per=unit"):
        Clip21(1.0, per="unit")


def test_centralize():
    """Source: optax.centralize's docstring; rows along a transposed convolution's own axis, tables and vectors stay."""
    assert one(Centralize(), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]) == [[[-1, 0, 1], [-1, 0, 1]]]
    assert one(Centralize(), [1.0, 2.0]) == [[1.0, 2.0]]
    assert one(Centralize(), [[3.0], [2.0]]) == [[[3.0], [2.0]]]  # or it would be 0 for good
    nan = one(Centralize(), [[1.0, math.nan], [4.0, 6.0]])[0]
    assert nan[0][0] == 1.0
    assert nan[1] == [-1.0, 1.0]
    model = nn.ModuleDict(
        {"up": nn.ConvTranspose2d(3, 2, 2), "down": nn.Conv2d(2, 3, 2), "table": nn.Embedding(4, 3)}
    )
    law = Centralize()
    law.bind({"all": dict(model.named_parameters())}, anatomy(model))
    before = {}
    for name, p in model.named_parameters():
        before[name] = p.grad = torch.randn(p.shape)
        before[name] = p.grad.clone()
    law.apply()
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, over in (("up.weight", (0, 2, 3)), ("down.weight", (1, 2, 3))):
        expected = before[name] - before[name].mean(over, keepdim=True)
        torch.testing.assert_close(after[name], expected)
        assert after[name].mean(over).abs().max() < 1e-6
    for name in ("up.bias", "down.bias", "table.weight"):
        assert torch.equal(after[name], before[name])


# Noise


def noise_of(law: Law, bound: Named, steps: int = 1) -> dict[str, Tensor]:
    """What was added at the last of some steps."""
    law.bind(bound)
    for _ in range(steps):
        for named in bound.values():
            for p in named.values():
                p.grad = torch.ones_like(p)
        law.apply()
    return {name: g - 1.0 for name, g in gradients(bound).items()}


def test_noise_has_the_variance_that_it_should():
    bound = {"all": {"p": nn.Parameter(torch.zeros(200, 200, dtype=torch.float64))}}
    for steps in (1, 9):
        found = noise_of(Noise(0.09, seed=3), bound, steps)["all/p"]
        assert float(found.var()) == pytest.approx(0.09 / steps**0.55, rel=0.03)
        assert abs(float(found.mean())) < 0.01


def test_noise_follows_from_seed_step_and_name_alone():
    torch.manual_seed(0)
    first = noise_of(Noise(0.1, seed=1), parameters())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    more = parameters()
    more["image"] = {"a": nn.Parameter(torch.ones(3).double()), **more["image"]}
    again = noise_of(Noise(0.1, seed=1), dict(reversed(more.items())))
    assert torch.equal(before, torch.get_rng_state())
    assert same({k: again[k] for k in first}, first)
    assert not torch.allclose(first["image/b"][:3], again["image/a"])
    assert not same(noise_of(Noise(0.1, seed=2), parameters()), first)
    second = noise_of(Noise(0.1, seed=1, decay=0.0), parameters(), 2)
    assert not torch.allclose(second["image/w"], first["image/w"])


def test_noise_goes_on_after_a_restart():
    whole, part, rest = (Noise(0.1, seed=5) for _ in range(3))
    expected = noise_of(whole, parameters(), 4)
    noise_of(part, parameters(), 3)
    bound = parameters()
    rest.bind(bound)
    rest.load_state_dict(saved(part))
    for named in bound.values():
        for p in named.values():
            p.grad = torch.ones_like(p)
    rest.apply()
    assert same({name: g - 1.0 for name, g in gradients(bound).items()}, expected)
    with pytest.raises(UserError, match=r"another clip law.*v"):
        rest.load_state_dict({"v": {}})


def test_noise_leaves_out_what_has_nothing_to_say():
    """A gradient of zeros or with a NaN gets none."""
    bound, law = parameters(), Noise(0.1)
    law.bind(bound)
    fill(bound, 0)
    for name in ("w", "b"):
        gradient = bound["image"][name].grad
        assert gradient is not None
        gradient.zero_() if name == "w" else gradient[0].fill_(math.nan)
    before = gradients(bound)
    law.apply()
    after = gradients(bound)
    assert same(
        {k: after[k] for k in ("image/w", "image/b")},
        {k: before[k] for k in ("image/w", "image/b")},
    )
    assert not torch.equal(after["text/w"], before["text/w"])


def test_noise_and_the_engine():
    """None during a warm-up; a schedule is of the variance."""
    bound = {"all": {"p": nn.Parameter(torch.zeros(100, 100))}}
    clip = Clipper(
        Noise(0.01, decay=0.0), warmup=1, schedule="linear", schedule_end=4.0, total_steps=3
    )
    clip.bind(bound)
    spread = []
    for _ in range(3):
        bound["all"]["p"].grad = torch.ones(100, 100)
        clip.apply()
        spread.append(float(bound["all"]["p"].grad.std()))
    assert spread == [0.0, pytest.approx(0.1, rel=0.05), pytest.approx(0.2, rel=0.05)]


# What holds for all that remember


def plain(name: str, steps: list[dict[str, Tensor]], c: float) -> list[dict[str, Tensor]]:
    """The laws as one would write them down, parameter by parameter, in float64."""
    state: dict[str, Any] = {}
    out: list[dict[str, Tensor]] = []
    for step in steps:
        done = {key: g.clone() for key, g in step.items()}
        for key, g in done.items():
            old = state.get(
                key, {"n": 0, "m": torch.zeros_like(g), "v": torch.zeros_like(g), "t": 0.0}
            )
            n = old["n"] + 1
            if name == "spike":
                if old["n"] >= 1:
                    cap = (4.0 * c * old["v"]).sqrt()
                    g = torch.where((g.abs() > cap) & (old["v"] > 0), g.sign() * cap, g)
                old = {"n": n, "v": 0.9 * old["v"] + (1 - 0.9) * g**2}
            elif name == "adaclip":
                top = float(g.abs().max())
                mean = 0.9 * old["t"] + (1 - 0.9) * top
                cap = c * mean / (1 - 0.9**n)
                g = torch.where(g.abs() > cap, g / top * cap, g)
                old = {"n": n, "t": mean}
            elif name == "coordinate":
                m = 0.9 * old["m"] + (1 - 0.9) * g
                v = 0.99 * old["v"] + (1 - 0.99) * g.abs() ** 1.5
                g = g * (c * v ** (1 / 1.5) / (m.abs() + 1e-8)).clamp(max=1.0)
                old = {"n": n, "m": m, "v": v}
            state[key], done[key] = {**state.get(key, {"m": 0, "v": 0, "t": 0.0}), **old}, g
        if name == "clip21":
            for scope in SHAPES:
                inside = [key for key in step if key.startswith(scope)]
                d = {k: step[k] - state[k]["v"] for k in inside}
                length = math.sqrt(sum(float((x**2).sum()) for x in d.values()))
                for k in inside:
                    state[k]["v"] = done[k] = state[k]["v"] + d[k] * min(1.0, c / length)
        out.append(done)
    return out


@STATEFUL
def test_parity_with_a_plain_loop(name: str):
    bound, law = parameters(), LAWS[name](0.7)
    law.bind(bound)
    raw, got = [], []
    for step in range(8):
        fill(bound, step)
        if step in (1, 4):
            bound["text"]["w"].grad = None
        raw.append(gradients(bound))
        held = {id(p.grad) for named in bound.values() for p in named.values()}
        law.apply()
        assert held == {id(p.grad) for named in bound.values() for p in named.values()}
        got.append(gradients(bound))
    changed = 0
    for step, (mine, want) in enumerate(zip(got, plain(name, raw, 0.7), strict=True)):
        assert mine.keys() == want.keys()
        for key in mine:
            torch.testing.assert_close(mine[key], want[key], rtol=1e-10, atol=0)
            changed += int((mine[key] != raw[step][key]).sum())
    assert changed > 20, "nothing was clipped: the comparison says nothing"


@STATEFUL
def test_infinity_keeps_bits_and_learns(name: str):
    bound, law = parameters(torch.float32), LAWS[name](INF)
    law.bind(bound)
    for step in range(4):
        fill(bound, step)
        before = gradients(bound)
        law.apply()
        assert same(gradients(bound), before)
    assert law.state_dict()


@pytest.mark.parametrize("name", ["spike", "adaclip", "coordinate"])
def test_elements_under_their_bound_keep_their_bits(name: str):
    bound, law = parameters(torch.float32), LAWS[name](1e9)
    law.bind(bound)
    for step in range(4):
        fill(bound, step)
        named = bound["image"]["w"]
        assert named.grad is not None
        named.grad[0, 0] = -0.0
        before = gradients(bound)
        law.apply()
        assert same(gradients(bound), before)


@STATEFUL
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_a_non_finite_gradient_passes_and_leaves_no_trace(name: str, bad: float):
    bound, law = parameters(), LAWS[name](0.7)
    law.bind(bound)
    for step in range(4):
        fill(bound, step)
        law.apply()
    before = law.state_dict()
    fill(bound, 2)
    for named in bound.values():
        gradient = named["w"].grad
        assert gradient is not None
        gradient[1, 1] = bad
    for key in ("image/b", "text/scale"):
        scope, each = key.split("/")
        bound[scope][each].grad = None
    raw = gradients(bound)
    law.apply()
    assert same(gradients(bound), raw)
    assert same(law.state_dict(), before)


@STATEFUL
def test_a_gradient_of_zeros_stays_and_teaches_nothing(name: str):
    bound, law = parameters(), LAWS[name](0.7)
    law.bind(bound)
    for step in range(3):
        fill(bound, step)
        law.apply()
    before = law.state_dict()
    for named in bound.values():
        for p in named.values():
            p.grad = torch.zeros_like(p)
    law.apply()
    assert not any(g.any() for g in gradients(bound).values())
    assert same(law.state_dict(), before)


@STATEFUL
def test_one_bad_parameter_does_not_stop_the_others(name: str):
    """They are clipped as ever, and learn nothing. Clip21's unit is the scope here, so that the other scope goes on."""
    outcomes = []
    for bad in (False, True):
        bound, law = parameters(), LAWS[name](0.7)
        law.bind(bound)
        for step in range(3):
            fill(bound, step)
            gradient = bound["image"]["b"].grad
            assert gradient is not None
            if bad and step == 2:
                gradient[0] = math.nan
            law.apply()
        outcomes.append({k: g for k, g in gradients(bound).items() if k.startswith("text")})
    assert same(*outcomes)


@STATEFUL
def test_resume_is_exact_also_with_a_scope_more(name: str):
    whole, bound = LAWS[name](0.7), parameters(torch.float32)
    whole.bind(bound)
    states = []
    for step in range(7):
        fill(bound, step)
        states.append(saved(whole))
        whole.apply()
    resumed, again = LAWS[name](0.7), parameters(torch.float32)
    again["audio"] = {"new": nn.Parameter(torch.ones(3))}
    resumed.bind(again)
    resumed.load_state_dict(states[4])  # before the first step
    for step in range(4, 7):
        fill(again, step)
        resumed.apply()
    after = gradients(again)
    assert same({k: g for k, g in after.items() if not k.startswith("audio")}, gradients(bound))
    kept = resumed.state_dict()
    for field, units in whole.state_dict().items():
        assert {*units, "audio/new"} == set(kept[field])
        assert same({k: kept[field][k] for k in units}, units)


@pytest.mark.parametrize("name", ["spike", "coordinate", "clip21"])
def test_a_state_that_does_not_fit_is_refused(name: str):
    law, bound = LAWS[name](0.7), parameters()
    law.bind(bound)
    fill(bound, 0)
    law.apply()
    state = law.state_dict()
    field = next(f for f, units in state.items() if units["image/w"].ndim == 2)
    wrong = {**state, field: {**state[field], "image/w": torch.zeros(4, 4)}}
    with pytest.raises(UserError, match=r"shape.*image/w: \(4, 4\).*\(4, 3\)"):
        law.load_state_dict(wrong)
    for other in ({**state, "ema": {}}, {"ema": {"": torch.ones(1)}}):
        with pytest.raises(UserError, match=r"another clip law.*ema"):
            law.load_state_dict(other)
    assert same(law.state_dict(), state)  # what it had stays
    law.load_state_dict({})
    assert not law.state_dict()


@STATEFUL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_have_a_state_in_float32(name: str, dtype: torch.dtype):
    half, exact = parameters(dtype), parameters(torch.float32)
    law, reference = LAWS[name](0.7), LAWS[name](0.7)
    law.bind(half)
    reference.bind(exact)
    for step in range(4):
        fill(half, step)
        for s, named in exact.items():
            for n, p in named.items():
                gradient = half[s][n].grad
                assert gradient is not None
                p.grad = gradient.float()
        law.apply()
        reference.apply()
        for key, g in gradients(half).items():
            assert g.dtype == dtype
            near = torch.finfo(dtype).eps
            torch.testing.assert_close(g.float(), gradients(exact)[key], rtol=2 * near, atol=1e-6)
    for field, units in law.state_dict().items():
        for unit, value in units.items():
            assert value.dtype in (torch.float32, torch.float64), (field, unit)


EVERY: dict[str, Callable[[], Law]] = {
    **{name: lambda make=make: make(0.7) for name, make in LAWS.items()},
    "centralize": Centralize,
    "noise": lambda: Noise(0.1),
}


@pytest.mark.parametrize("name", EVERY)
def test_no_host_sync(name: str):
    with FakeTensorMode():
        bound, law = parameters(torch.float32), EVERY[name]()
        law.bind(bound)
        for step in range(3):
            for named in bound.values():
                for key, p in named.items():
                    p.grad = None if step == 1 and key == "b" else torch.randn(p.shape)
            law.apply().by_scope()


@pytest.mark.parametrize("name", EVERY)
def test_statistics_are_those_of_the_elements(name: str):
    bound, law = parameters(), EVERY[name]()
    law.bind(bound)
    for step in range(2):
        fill(bound, step)
        law.apply()
    fill(bound, 2)
    before = torch.cat([g.ravel() for g in gradients(bound).values()])
    stats = law.apply()
    after = torch.cat([g.ravel() for g in gradients(bound).values()])
    fields = {k: float(v[0]) for k, v in stats.by_scope().items()}
    assert fields["norm"] == pytest.approx(float(before.norm()))
    assert fields["norm_clipped"] == pytest.approx(float(after.norm()))
    assert fields["elements"] == pytest.approx(float((before != after).double().mean()))
    cosine = float(before @ after / before.norm() / after.norm())
    assert fields["cosine"] == pytest.approx(cosine)


@pytest.mark.parametrize("name", EVERY)
def test_sparse_gradients(name: str):
    """A number per element cannot be kept of a gradient of a few rows; the others take it."""
    table, law = nn.Embedding(4, 2, sparse=True), EVERY[name]()
    law.bind({"text": dict(table.named_parameters())}, anatomy(table))
    table(torch.tensor([1, 3, 1])).sum().backward()
    if name in ("adaclip", "centralize"):
        law.apply()
        assert table.weight.grad is not None
        dense = table.weight.grad.to_dense()
        largest = 2 if name == "centralize" else pytest.approx(1.4)
        assert dense.tolist() == [[0, 0], [largest] * 2, [0, 0], [1, 1]]
        return
    with pytest.raises(UserError, match=r"dense.*text/weight.*sparse=False"):
        law.apply()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Spike(1.0, beta=1.0), "beta"),
        (lambda: Spike(1.0, beta=math.nan), "beta"),
        (lambda: Spike(1.0, warmup_steps=-1), "warmup_steps"),
        (lambda: AdaClip(-1.0), "threshold"),
        (lambda: AdaClip(1.0, beta=-0.5), "beta"),
        (lambda: Coordinate(1.0, alpha=0.5), "alpha"),
        (lambda: Coordinate(1.0, beta1=-0.1), "beta1"),
        (lambda: Coordinate(1.0, beta2=1.5), "beta2"),
        (lambda: Coordinate(1.0, eps=-1e-8), "eps"),
        (lambda: Clip21(math.nan), "threshold"),
        (lambda: Clip21(1.0, p=0.0), "p"),
        (lambda: Noise(0.0), "threshold"),
        (lambda: Noise(0.1, decay=-1.0), "decay"),
        (lambda: Noise(0.1, decay=INF), "decay"),
        (lambda: Noise(0.1, seed=1.5), "seed"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], Law], key: str):
    with pytest.raises(UserError, match=rf"clip\.{key}\b"):
        make()
