"""Laws in a chain: one after another on the same gradients, with as few passes as may be, and a state of each."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmrun.build import law as law_of
from mmrun.clip.adaclip import AdaClip
from mmrun.clip.adagn import AdaGN
from mmrun.clip.centralize import Centralize
from mmrun.clip.chain import Chain
from mmrun.clip.clip21 import Clip21
from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.layout import Plan
from mmrun.clip.noise import Noise
from mmrun.clip.none import Unclipped
from mmrun.clip.norm import Norm
from mmrun.clip.smooth import Smooth
from mmrun.clip.spike import Spike
from mmrun.clip.step import Gradients, InForce
from mmrun.clip.value import Value
from mmrun.errors import UserError

Named = dict[str, dict[str, nn.Parameter]]
SHAPES = {"image": {"w": (4, 3), "b": (4,)}, "text": {"w": (5, 2), "scale": ()}}
few = settings(max_examples=30, deadline=None)


def parameters(dtype: torch.dtype = torch.float64) -> Named:
    return {
        s: {n: nn.Parameter(torch.ones(shape, dtype=dtype)) for n, shape in named.items()}
        for s, named in SHAPES.items()
    }


def fill(bound: Named, seed: int, scale: float = 1.0) -> None:
    generator = np.random.default_rng(seed)
    for named in bound.values():
        for p in named.values():
            gradient = scale * generator.standard_normal(tuple(p.shape))
            p.grad = torch.tensor(gradient).to(p.dtype)


def gradients(bound: Named) -> list[Tensor]:
    every = [p.grad for named in bound.values() for p in named.values()]
    return [g.clone() for g in every if g is not None]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def one(law: Law, *gradient: float) -> list[float]:
    p = nn.Parameter(torch.zeros(len(gradient), dtype=torch.float64))
    law.bind({"all": {"p": p}})
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    law.apply()
    return p.grad.tolist()


# What it does


def test_published_numbers():
    """(3, 4) at Norm(2) and then Smooth(1): (1.2, 1.6), shortened by 1 + 2."""
    assert one(Chain(Norm(2.0), Smooth(1.0)), 3.0, 4.0) == pytest.approx([0.4, 0.53333333])


def test_stable_spam_is_a_chain():
    """AdaClip, then AdaGN on what is left; written down as in Huang et al. 2025, arXiv 2502.17055."""
    law = Chain(AdaClip(1.0), AdaGN(1.0))
    bound = parameters()
    law.bind(bound)
    t = [0.0] * 4
    m, v = [0.0] * 4, [0.0] * 4
    for step in range(1, 6):
        fill(bound, step, 10.0 ** (step % 3))
        raw = gradients(bound)
        law.apply()
        for k, (g, got) in enumerate(zip(raw, gradients(bound), strict=True)):
            top = g.abs().max()
            t[k] = 0.999 * t[k] + 0.001 * float(top)
            cap = t[k] / (1 - 0.999**step)
            cut = torch.where(g.abs() > cap, g / top * cap, g)
            n = float(cut.norm())
            m[k], v[k] = 0.7 * m[k] + 0.3 * n, 0.9 * v[k] + 0.1 * n * n
            m_hat, v_hat = m[k] / (1 - 0.7**step), v[k] / (1 - 0.9**step)
            torch.testing.assert_close(got, cut / n * m_hat / (math.sqrt(v_hat) + 1e-8))


@few
@given(
    seed=st.integers(0, 2**32 - 1),
    a=st.floats(0.01, 20.0),
    b=st.floats(0.01, 20.0),
    per=st.sampled_from(["global", "modality", "tensor", "unit"]),
)
def test_two_caps_are_the_smaller_one(seed: int, a: float, b: float, per: Any):
    outcomes = []
    knobs: dict[str, Any] = {"per": per, "budget": "each"}
    for law in (Chain(Norm(a, **knobs), Norm(b, **knobs)), Norm(min(a, b), **knobs)):
        bound = parameters()
        law.bind(bound)
        fill(bound, seed)
        law.apply()
        outcomes.append(gradients(bound))
    for first, second in zip(*outcomes, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


MAKERS: list[Callable[[], Law]] = [
    lambda: Norm(1.0),
    lambda: Norm(0.7, per="modality"),
    lambda: Norm(0.4, per="tensor", budget="each"),
    lambda: Norm(0.3, per="unit", budget="each"),
    lambda: Value(0.5),
    Centralize,
    lambda: Spike(3.0, warmup_steps=1),
    lambda: AdaClip(0.8),
    lambda: Clip21(1.0),
    lambda: Noise(0.1),
]


@few
@given(chosen=st.lists(st.integers(0, len(MAKERS) - 1), min_size=1, max_size=4))
def test_a_chain_is_its_laws_one_after_another(chosen: list[int]):
    """Whatever is multiplied late, elements changed in between, and granularity."""
    apart, together = [MAKERS[k]() for k in chosen], Chain(*(MAKERS[k]() for k in chosen))
    first, second = parameters(), parameters()
    for law in apart:
        law.bind(first)
    together.bind(second)
    for step in range(3):
        fill(first, step, 3.0)
        fill(second, step, 3.0)
        raw = torch.cat([g.ravel() for g in gradients(first)])
        for law in apart:
            law.apply()
        fields = {k: float(f[0]) for k, f in together.apply().by_scope().items()}
        for a, b in zip(gradients(first), gradients(second), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        after = torch.cat([g.ravel() for g in gradients(second)])
        assert fields["norm"] == pytest.approx(float(raw.norm()))
        assert fields["norm_clipped"] == pytest.approx(float(after.norm()))
        assert fields["cosine"] == pytest.approx(float(raw @ after / raw.norm() / after.norm()))


def test_laws_that_scale_take_one_pass_to_read_and_one_to_write(monkeypatch: pytest.MonkeyPatch):
    reads: list[float] = []
    writes: list[int] = []
    read, write = Plan.norms, Gradients._write

    def spied_read(self: Plan, tensors: list[Tensor], p: float = 2.0) -> Tensor:
        reads.append(p)
        return read(self, tensors, p)

    def spied_write(self: Gradients) -> None:
        writes.append(self._factors is not None)
        write(self)

    monkeypatch.setattr(Plan, "norms", spied_read)
    monkeypatch.setattr(Gradients, "_write", spied_write)
    law = Chain(Norm(3.0, per="tensor"), Norm(2.0, per="modality"), Norm(1.0))
    bound = parameters()
    law.bind(bound)
    fill(bound, 0, 5.0)
    law.apply()
    assert reads == [2.0]
    assert writes == [1]
    assert math.sqrt(sum(float(g.norm()) ** 2 for g in gradients(bound))) == pytest.approx(1.0)


# What it reports, and how it is scheduled


def test_the_last_law_is_the_face():
    chain = Chain(Norm(2.0, per="modality", budget="each"), Norm(0.5, per="tensor", p=3.0))
    assert (chain.threshold, chain.per, chain.p) == (0.5, "tensor", 3.0)
    bound = parameters()
    chain.bind(bound)
    fill(bound, 0, 9.0)
    alone = Norm(0.5, per="tensor", p=3.0)
    alone.bind(bound)
    stats = chain.apply()
    assert torch.equal(stats.threshold, alone.apply().threshold)
    assert stats.payer.tolist() == [1.0, 1.0]


def test_payers_multiply():
    chain, bound = Chain(Norm(4.0), Norm(1.0)), parameters()
    chain.bind(bound)
    fill(bound, 3, 9.0)
    raw = [math.sqrt(sum(float(p.grad.norm()) ** 2 for p in n.values() if p.grad is not None)) for n in bound.values()]  # fmt: skip
    total = math.hypot(*raw)
    alone_first = [min(1.0, 4.0 / n) for n in raw]
    first = 4.0 / total
    alone_last = [min(1.0, 1.0 / (n * first)) for n in raw]
    last = 1.0 / 4.0
    expected = [first / a * (last / b) for a, b in zip(alone_first, alone_last, strict=True)]
    assert chain.apply().payer.tolist() == pytest.approx(expected)


def test_a_step_that_one_law_skips_is_skipped():
    class Skips(Unclipped):
        algorithm = "skips"

        def __init__(self, yes: bool | None) -> None:
            super().__init__()
            self.yes = yes

        def clip(self, gradients: Gradients) -> InForce:
            done = super().clip(gradients)
            return done if self.yes is None else done._replace(skipped=torch.tensor(self.yes))

    def skipped(*words: bool | None) -> bool | None:
        laws = [Norm(1.0) for _ in words]
        chain = Chain(*laws)
        chain.laws = tuple(Skips(word) for word in words)
        bound = parameters()
        chain.bind(bound)
        found = chain.clip(Gradients(*chain.layout.gather())).skipped
        return None if found is None else bool(found)

    assert skipped(None, None) is None
    assert skipped(None, False) is False
    assert skipped(True, None) is True
    assert skipped(True, False) is True
    assert skipped(False, False) is False


def test_a_schedule_and_a_warm_up_are_of_the_last_law():
    clip = Clipper(
        Chain(Norm(4.0), Norm(2.0)), warmup=1, schedule="linear", schedule_end=0.5, total_steps=3
    )
    bound = parameters()
    clip.bind(bound)
    lengths = []
    for step in range(3):
        fill(bound, step, 50.0)
        clip.apply()
        lengths.append(math.sqrt(sum(float(g.norm()) ** 2 for g in gradients(bound))))
    assert lengths == pytest.approx([4.0, 2.0, 1.0])


def test_a_floor_comes_behind_at_the_last_law_s_granularity():
    clip = Clipper(Chain(Centralize(), Norm(9.0, per="tensor", budget="each")), floor=2.0)
    bound = parameters()
    clip.bind(bound)
    fill(bound, 1, 0.01)
    clip.apply()
    assert [float(g.norm()) for g in gradients(bound)] == pytest.approx([2.0] * 4)


# State


def chain() -> Chain:
    return Chain(Centralize(), Spike(3.0, warmup_steps=1), AdaClip(0.9), Norm(1.0))


def test_state_is_kept_by_position_and_survives_a_restart():
    whole, bound = chain(), parameters(torch.float32)
    whole.bind(bound)
    states: list[bytes] = []
    for step in range(6):
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        states.append(file.getvalue())
        fill(bound, step, 5.0)
        whole.apply()
    assert list(whole.state_dict()) == ["1:spike", "2:adaclip"]
    resumed, again = chain(), parameters(torch.float32)
    again["audio"] = {"w": nn.Parameter(torch.ones(2))}
    resumed.bind(again)
    resumed.load_state_dict(torch.load(io.BytesIO(states[3]), weights_only=True))
    del again["audio"]  # it never has a gradient
    for step in range(3, 6):
        fill(again, step, 5.0)
        resumed.apply()
    # The last law's norm is global, and a scope without a gradient has none.
    assert same(gradients(again), gradients(bound))
    resumed.load_state_dict({})
    assert resumed.state_dict() == {}


def test_state_of_another_chain_is_refused():
    law, bound = chain(), parameters()
    law.bind(bound)
    fill(bound, 0)
    law.apply()
    state = law.state_dict()
    other = Chain(Spike(3.0), Norm(1.0))
    other.bind(bound)
    with pytest.raises(UserError, match=r"another chain.*1:spike, 2:adaclip.*0:spike, 1:norm"):
        other.load_state_dict(state)
    with pytest.raises(UserError, match=r"another clip law"):
        law.load_state_dict({"1:spike": {"mean": {}}})


def test_a_step_that_is_not_finite_leaves_no_trace():
    outcomes = []
    for bad in (False, True):
        law, bound = chain(), parameters()
        law.bind(bound)
        for step in range(4):
            if bad and step == 2:
                fill(bound, 99)
                for named in bound.values():
                    for p in named.values():
                        assert p.grad is not None
                        p.grad.reshape(-1)[0] = math.inf
                law.apply()
            fill(bound, step)
            law.apply()
        outcomes.append(gradients(bound))
    assert same(*outcomes)


def test_no_host_sync():
    with FakeTensorMode():
        law, bound = Chain(*(make() for make in MAKERS)), parameters(torch.float32)
        law.bind(bound)
        for step in range(2):
            for named in bound.values():
                for name, p in named.items():
                    p.grad = None if step and name == "b" else torch.randn(p.shape)
            law.apply().by_scope()


# What it can be made of


def test_what_cannot_be_a_chain_is_refused():
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((), r"needs laws.*clip\.laws"),
        ((Norm(1.0), Chain(Norm(1.0))), "clip=chain cannot be part of a chain"),
        ((Unclipped(), Norm(1.0)), "clip=none cannot be part of a chain"),
        (([Norm(1.0)],), "made of clip laws.*\\[Norm"),
        ((Norm("p90"),), "threshold as a number.*p90 of norm"),
    ]
    for laws, message in cases:
        with pytest.raises(UserError, match=message):
            Chain(*laws)


NODE = {"_target_": "mmrun.clip.chain.Chain", "threshold": 0.5}
VALUE = {"_target_": "mmrun.clip.value.Value", "threshold": 0.1}
NORM = {"_target_": "mmrun.clip.norm.Norm", "threshold": 1.0, "p": 1.0}
CENTRALIZE = {"_target_": "mmrun.clip.centralize.Centralize"}


def test_the_threshold_of_a_config_is_that_of_the_last_law():
    made = law_of({**NODE, "laws": [CENTRALIZE, VALUE, NORM]}, "clip")
    assert isinstance(made, Chain)
    assert [each.algorithm for each in made.laws] == ["centralize", "value", "norm"]
    assert [each.threshold for each in made.laws] == [math.inf, 0.1, 0.5]
    assert made.p == 1.0
    assert NORM["threshold"] == 1.0  # the config stays
    bare = {k: v for k, v in NORM.items() if k != "threshold"}  # as composing leaves it
    assert law_of({**NODE, "laws": [VALUE, bare]}, "clip").threshold == 0.5


def test_what_a_config_gets_wrong_is_said():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"laws": []}, "needs laws"),
        ({"laws": [NORM], "foo": 1}, r"clip takes no foo"),
        ({"laws": [{**NORM, "foo": 1}]}, r"clip\.laws\[0\] takes no foo"),
        (
            {"laws": [NORM, CENTRALIZE]},
            r"clip\.laws\[1\] takes no threshold",
        ),
        ({"laws": [NORM], "threshold": -1.0}, r"clip\.threshold"),
        ({"laws": [NORM], "threshold": "p90"}, r"threshold as a number.*p90"),
        ({"laws": [{**NODE, "laws": [NORM]}, VALUE]}, "part of a chain"),
        ({"laws": "norm"}, r"clip\.laws is a list"),
        ({"laws": ["norm"]}, r"clip\.laws is a list"),
        ({"laws": None}, r"clip\.laws is a list"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            law_of({**NODE, **changes}, "clip")
