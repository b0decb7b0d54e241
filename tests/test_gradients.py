"""The gradient pipeline: order of its parts, columns, rows, no host sync."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmrun.balance import Balance
from mmrun.balance.none import NoBalance
from mmrun.clip.engine import Clipper
from mmrun.clip.norm import Norm
from mmrun.errors import UserError
from mmrun.gradients import GradientPipeline, rows
from tests.oracles import SETTINGS, build

Named = dict[str, dict[str, nn.Parameter]]


def scopes(dtype: torch.dtype = torch.float32) -> Named:
    torch.manual_seed(0)
    return {
        scope: {f"{scope}.{n}": nn.Parameter(torch.randn(3, 2, dtype=dtype)) for n in "ab"}
        for scope in ("image", "text", "fusion")
    }


def flat(bound: Named) -> list[nn.Parameter]:
    return [p for named in bound.values() for p in named.values()]


def sgd(bound: Named) -> torch.optim.Optimizer:
    return torch.optim.SGD(flat(bound), lr=0.1)


def fill(bound: Named) -> None:
    for k, p in enumerate(flat(bound)):
        p.grad = torch.randn_like(p) * 2.0**-k


class Halve(Balance):
    """text / 2."""

    def scales(self) -> dict[str, Tensor]:
        return {"text": torch.tensor(0.5)}


def test_columns():
    pipeline = GradientPipeline(Clipper(Norm(1.0)), NoBalance(), scopes())
    both = ["grad/norm", "grad/norm_clipped", "grad/cosine"]
    both += ["clip/coefficient", "clip/elements", "clip/threshold"]
    want = {*both, "grad/nonfinite"}
    for scope in ("image", "text", "fusion"):
        want |= {f"{column}/{scope}" for column in [*both, "clip/payer"]}
    assert set(pipeline.columns) == want
    assert len(pipeline.columns) == len(want)


@pytest.mark.parametrize(("option", "variant"), SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_is_what_happened(option: str, variant: dict[str, Any], dtype: torch.dtype):
    bound = scopes(dtype)
    pipeline = GradientPipeline(Clipper(build(option, **variant)), NoBalance(), bound)
    kept = []
    for step in range(3):
        torch.manual_seed(step)
        fill(bound)
        before = {s: np.concatenate([g(p) for p in n.values()]) for s, n in bound.items()}
        telemetry = pipeline.apply(sgd(bound))
        after = {s: np.concatenate([g(p) for p in n.values()]) for s, n in bound.items()}
        before[""], after[""] = (np.concatenate(list(d.values())) for d in (before, after))
        assert telemetry.row.shape == (len(pipeline.columns),)
        assert telemetry.row.dtype == dtype
        for scope, a in before.items():
            b = after[scope]
            n, m = np.linalg.norm(a), np.linalg.norm(b)
            end = f"/{scope}" if scope else ""
            rel = 1e-12 if dtype == torch.float64 else 2e-6
            assert telemetry[f"grad/norm{end}"].item() == pytest.approx(n, rel=rel)
            assert telemetry[f"grad/norm_clipped{end}"].item() == pytest.approx(m, rel=rel)
            assert telemetry[f"clip/coefficient{end}"].item() == pytest.approx(m / n, rel=rel)
            assert telemetry[f"grad/cosine{end}"].item() == pytest.approx(a @ b / n / m, rel=rel)
            assert telemetry[f"clip/elements{end}"].item() == pytest.approx(
                np.mean(a != b), rel=rel
            )
        assert telemetry["grad/nonfinite"] == 0
        kept.append(telemetry)
    assert pipeline.steps == 3
    assert torch.equal(rows(kept), torch.stack([t.row for t in kept]))
    assert torch.equal(rows(kept * 30), torch.stack([t.row for t in kept * 30]))


def g(p: nn.Parameter) -> np.ndarray:
    assert p.grad is not None
    return p.grad.double().numpy().ravel()


def test_payer_in_the_row():
    bound = scopes()
    for value, p in zip([4.0, 0.0, 3.0, 0.0, 0.0, 0.0], flat(bound), strict=True):
        p.grad = torch.zeros_like(p)
        p.grad[0, 0] = value
    telemetry = GradientPipeline(Clipper(Norm(2.5)), NoBalance(), bound).apply(sgd(bound))
    assert telemetry["clip/payer/image"].item() == pytest.approx(0.8)
    assert telemetry["clip/payer/text"].item() == pytest.approx(0.6)
    assert telemetry["clip/payer/fusion"].item() == 1, "no gradient pays nothing"
    assert telemetry["clip/threshold"] == 2.5


def test_modulation_comes_before_the_clip():
    """text has length 8, halved to 4; with image 3 that is 5, and 5 is clipped to 1."""
    bound = scopes()
    for named, value in zip(bound.values(), [3.0, 8.0, 0.0], strict=True):
        for k, p in enumerate(named.values()):
            p.grad = torch.zeros_like(p)
            p.grad[0, 0] = value if k == 0 else 0.0
    telemetry = GradientPipeline(Clipper(Norm(1.0)), Halve(), bound).apply(sgd(bound))
    assert telemetry["grad/norm"] == 5
    got = [p.grad[0, 0].item() for p in flat(bound) if p.grad is not None]
    assert got == pytest.approx([0.6, 0, 0.8, 0, 0, 0])


def test_modulation_of_an_unknown_scope_is_refused():
    bound = scopes()
    del bound["text"]
    fill(bound)
    with pytest.raises(UserError, match=r"text.*fusion, image"):
        GradientPipeline(Clipper(Norm(1.0)), Halve(), bound).apply(sgd(bound))


def test_combine_writes_the_balance_of_each_losss_gradients():
    bound = scopes()
    pipeline = GradientPipeline(Clipper(build("none")), NoBalance(), bound)
    one = torch.ones(3, 2)
    # One tensor for two parameters, as torch.autograd.grad may return: each gets its own.
    pipeline.combine({"a": {"image.a": one, "image.b": one}, "b": {"image.a": 2 * one}})
    first, second = bound["image"].values()
    assert first.grad is not None
    assert second.grad is not None
    assert torch.equal(first.grad, 3 * one)
    assert torch.equal(second.grad, one)
    second.grad.mul_(0)
    assert torch.equal(one, torch.ones(3, 2))
    assert bound["text"]["text.a"].grad is None
    with pytest.raises(UserError, match=r"image\.c.*image\.a"):
        pipeline.combine({"a": {"image.c": one}})


def test_aliased_gradients_are_clipped_once():
    bound = scopes()
    pipeline = GradientPipeline(Clipper(Norm(1.0)), NoBalance(), bound)
    shared = torch.ones(3, 2)
    pipeline.combine({"a": dict.fromkeys(bound["image"], shared)})
    telemetry = pipeline.apply(sgd(bound))
    assert telemetry["grad/norm"].item() == pytest.approx(math.sqrt(12))
    for p in bound["image"].values():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, shared / math.sqrt(12))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_scaled_gradients_are_unscaled_first(scale: float):
    bound = scopes()
    fill(bound)
    want = [p.grad.clone() for p in flat(bound) if p.grad is not None]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(()))
    for p in flat(bound):
        assert p.grad is not None
        p.grad.mul_(scale)
    optimizer = sgd(bound)
    telemetry = GradientPipeline(Clipper(Norm(1e3)), NoBalance(), bound).apply(optimizer, scaler)
    norm = math.sqrt(sum(float(w.square().sum()) for w in want))
    assert telemetry["grad/norm"].item() == pytest.approx(norm, rel=1e-6)
    for p, w in zip(flat(bound), want, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, w)
    scaler.step(optimizer)


def test_a_non_finite_step_is_counted():
    bound = scopes()
    fill(bound)
    gradient = bound["text"]["text.a"].grad
    assert gradient is not None
    gradient[0, 0] = math.nan
    telemetry = GradientPipeline(Clipper(Norm(0.1)), NoBalance(), bound).apply(sgd(bound))
    assert telemetry["grad/nonfinite"] == 1
    assert math.isnan(telemetry["grad/norm/text"].item())
    assert math.isfinite(telemetry["grad/norm/image"].item())
    assert telemetry["clip/coefficient"] == 1


@pytest.mark.parametrize(("option", "variant"), SETTINGS, ids=str)
def test_no_host_sync(option: str, variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmrun.clip.engine.may_look", lambda device: False)  # as on a GPU  # noqa: ARG005
    with FakeTensorMode():
        bound = scopes()
        pipeline = GradientPipeline(Clipper(build(option, **variant)), Halve(), bound)
        fill(bound)
        optimizer = sgd(bound)
        rows([pipeline.apply(optimizer) for _ in range(2)])


def test_telemetry_holds_no_gradient():
    """Many steps are kept between two logs: their gradients must not be."""
    bound = scopes()
    fill(bound)
    telemetry = GradientPipeline(Clipper(Norm(1.0)), NoBalance(), bound).apply(sgd(bound))
    before = telemetry.row.clone()
    for p in flat(bound):
        assert p.grad is not None
        p.grad.zero_()
    del telemetry.__dict__["row"]
    assert torch.equal(telemetry.row, before)


def test_state():
    bound = scopes()
    pipeline = GradientPipeline(Clipper(Norm(1.0)), NoBalance(), bound)
    fill(bound)
    pipeline.apply(sgd(bound))
    again = GradientPipeline(Clipper(Norm(1.0)), NoBalance(), bound)
    again.load_state_dict(pipeline.state_dict())
    assert again.steps == 1
