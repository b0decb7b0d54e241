"""Elements changed and measured in buckets: however these are cut, what is told is that of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mmrun.clip import buckets
from mmrun.clip.step import Gradients, InForce
from mmrun.clip.value import Value
from tests.oracles import build

SHAPES = {
    "image": [(50,), (3, 4), (), (40,), (17,)],
    "text": [(2,), (9, 9)],
    "none": [],
    "c": [(8,)],
}


class Opened(Value):
    """The same law by the way of those that need a tensor as a whole."""

    def clip(self, gradients: Gradients) -> InForce:
        for g in gradients.open():
            g.clamp_(-self.current, self.current)
        return InForce(gradients.plan.filled(1.0, 5), gradients.plan.no_payer)


def clipped(law: Value, dtypes: list[torch.dtype], turned: bool) -> tuple[list[Tensor], ...]:
    torch.manual_seed(0)
    bound, raw = {}, []
    for scope, shapes in SHAPES.items():
        bound[scope] = {}
        for k, shape in enumerate(shapes):
            dtype = dtypes[k % len(dtypes)]
            g = torch.randn(shape, dtype=torch.float64).to(dtype)
            if turned and g.ndim == 2:
                g = g.t().contiguous().t()
            bound[scope][str(k)] = p = nn.Parameter(torch.zeros(shape, dtype=dtype))
            p.grad = g.clone()
            raw.append(g)
    law.bind(bound)
    fields = law.apply().by_scope()
    out = [p.grad for named in bound.values() for p in named.values() if p.grad is not None]
    names = ("norm", "norm_clipped", "coefficient", "cosine", "elements")
    return raw, out, [fields[name] for name in names]


@pytest.mark.parametrize("law", [Value, Opened])
@pytest.mark.parametrize("most", [16, 32, 2**17])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "dtypes", [[torch.float32], [torch.float64], [torch.float16, torch.float32, torch.bfloat16]]
)
def test_what_is_told_is_of_the_whole(
    law: type[Value],
    most: int,
    turned: bool,
    dtypes: list[torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(buckets, "IN_CACHE", most)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    raw, out, told = clipped(law(0.3), dtypes, turned)
    for g, c in zip(raw, out, strict=True):
        assert torch.equal(c, g.clone().clamp_(-0.3, 0.3))
        assert c.stride() == g.stride()
    counts = [len(shapes) for shapes in SHAPES.values()]
    starts = [sum(counts[:k]) for k in range(len(counts))]
    spans = [slice(0, len(raw)), *(slice(s, s + n) for s, n in zip(starts, counts, strict=True))]
    for row, span in enumerate(spans):
        a, b = (
            torch.cat([torch.zeros(0).double(), *(t.double().ravel() for t in ts[span])])
            for ts in (raw, out)
        )
        want = [a.norm(), b.norm(), b.norm() / a.norm(), a @ b / a.norm() / b.norm()]
        want += [(a != b).double().mean()]
        for got, number in zip(told, want, strict=True):
            if len(a):
                rel = 1e-12 if dtypes == [torch.float64] else 1e-6
                assert got[row].item() == pytest.approx(number.item(), rel=rel)


@pytest.mark.parametrize("law", [Value, Opened])
def test_an_element_that_is_not_finite_and_stays_did_not_change(
    law: type[Value], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(buckets, "IN_CACHE", 16)
    p = nn.Parameter(torch.zeros(100))
    p.grad = torch.zeros(100)
    p.grad[3], p.grad[50], p.grad[70] = math.nan, 5.0, -math.inf
    bound = law(1.0)
    bound.bind({"a": {"p": p}})
    assert bound.apply().by_scope()["elements"].tolist() == pytest.approx([0.02, 0.02])


def test_buckets_hold_every_element_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(buckets, "IN_CACHE", 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    law = Value(1.0)
    sizes = [100, 31, 1, 33, 5, 20, 20]
    named = {str(k): nn.Parameter(torch.zeros(n)) for k, n in enumerate(sizes)}
    for p in named.values():
        p.grad = torch.zeros_like(p)
    law.bind({"a": named})
    plan, tensors = law.layout.gather()
    found = buckets.cut(plan, tensors)
    for bucket in found:
        for part in bucket.of(tensors):
            part += 1
        assert bucket.size == sum(map(len, bucket.of(tensors))) <= 48
    assert all((g == 1).all() for g in tensors)
    assert [bucket.positions for bucket in found if bucket.part is None] == [[1, 2], [4, 5], [6]]
    assert buckets.cut(plan, tensors) is found


def test_a_second_law_must_be_announced():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    law = Value(0.5)
    law.bind({"a": {"p": p}})
    gradients = Gradients(*law.layout.gather())
    law.clip(gradients)
    with pytest.raises(RuntimeError, match="keep"):
        gradients.multiply(torch.ones(1), "global")
    p.grad = torch.ones(3)
    gradients = Gradients(*law.layout.gather())
    gradients.keep()
    in_force = law.clip(gradients)
    gradients.multiply(torch.full((1,), 0.5), "global")
    assert gradients.stats(in_force).by_scope()["coefficient"][0] == pytest.approx(0.25)
    assert p.grad.tolist() == [0.25] * 3


@pytest.mark.parametrize("option", ["adaclip", "clip21", "coordinate", "spike"])
def test_a_law_of_elements_does_not_depend_on_how_they_are_cut(
    option: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    outcomes: list[list[Tensor]] = []
    for most in (16, 2**17):
        monkeypatch.setattr(buckets, "IN_CACHE", most)
        p, law = nn.Parameter(torch.zeros(7, 11)), build(option)
        law.bind({"a": {"p": p}})
        generator = torch.Generator().manual_seed(0)
        out: list[Tensor] = []
        for step in range(30):
            p.grad = torch.randn(7, 11, generator=generator) * (100.0 if step > 24 else 1.0)
            law.apply()
            out.append(p.grad.clone())
        outcomes.append(out)
    for few, many in zip(*outcomes, strict=True):
        torch.testing.assert_close(few, many, rtol=1e-6, atol=0)
