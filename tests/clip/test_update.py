"""clip.on=update: what the optimizer makes of a gradient is clipped, per unit of its learning rate."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.norm import Norm
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients
from mmrun.clip.update import Update
from mmrun.clip.value import Value
from mmrun.errors import UserError
from mmrun.gradients import GradientPipeline
from tests.running import SMALL, column, fit, same

C = 0.05


class Ratio(Scaling):
    """c_u = threshold ||w_u||, of the weights before the step."""

    algorithm = "ratio"

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:  # noqa: ARG002 (signature)
        return self.current * gradients.weight_norms(self.per)


class RootMeanSquare(Scaling):
    """g_u / max(1, rms(g_u) / d) of each tensor."""

    algorithm = "root_mean_square"

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:  # noqa: ARG002 (signature)
        return self.current * gradients.unit_sizes(self.per).sqrt()


def network(dtype: torch.dtype = torch.float64) -> Any:  # a module, whose layers have no type
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2), nn.Linear(9, 1)).to(dtype)


def backward(model: Any, step: int) -> None:
    """A loss in which the last layer has no part, and at every third step the first layer's bias neither."""
    model.zero_grad()
    dtype = model[0].weight.dtype
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(8, n, generator=generator).to(dtype) for n in (4, 2))
    (3 * model[2](model[1](model[0](x))) - y).square().mean().backward()
    if step % 3 == 2:
        model[0].bias.grad = None


def groups(model: Any, rate: float) -> list[dict[str, Any]]:
    """Learning rates of several kinds; a group at 0 does not move."""
    return [
        {"params": [model[0].weight], "lr": rate},
        {"params": [model[0].bias, *model[3].parameters()], "lr": rate / 7},
        {"params": [model[2].weight], "lr": torch.tensor(rate / 3)},
        {"params": [model[2].bias], "lr": torch.tensor(0.0)},
    ]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps),
    "momentum": lambda ps: torch.optim.SGD(ps, momentum=0.9, nesterov=True),
    "momentum fused": lambda ps: torch.optim.SGD(ps, momentum=0.9, fused=True),
    "adam": lambda ps: torch.optim.Adam(ps),
    "adamw": lambda ps: torch.optim.AdamW(ps, weight_decay=0.3),
    "adamw foreach": lambda ps: torch.optim.AdamW(ps, weight_decay=0.3, foreach=True),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, weight_decay=0.3, fused=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, momentum=0.5),
    "adagrad": lambda ps: torch.optim.Adagrad(ps),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def made(name: str, model: Any, rate: float = 0.1) -> torch.optim.Optimizer:
    its = groups(model, rate)
    if not name.startswith("adam") or "foreach" in name:
        for group in its:  # the others take no tensor, or only one that can be captured
            group["lr"] = float(group["lr"])
    return OPTIMIZERS[name](its)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def norm_of(updates: list[Tensor], before: list[Tensor]) -> list[Tensor]:  # noqa: ARG001
    length = torch.cat([u.flatten() for u in updates]).norm()
    return [u * min(1.0, C / float(length)) for u in updates]


def value_of(updates: list[Tensor], before: list[Tensor]) -> list[Tensor]:  # noqa: ARG001
    return [u.clamp(-C, C) for u in updates]


def ratio_of(updates: list[Tensor], before: list[Tensor]) -> list[Tensor]:
    pairs = zip(updates, before, strict=True)
    return [u * min(1.0, C * float(w.norm() / u.norm())) for u, w in pairs]


def rms_of(updates: list[Tensor], before: list[Tensor]) -> list[Tensor]:  # noqa: ARG001
    return [u / max(1.0, float(u.square().mean().sqrt()) / C) for u in updates]


Oracle = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
ORACLES: dict[str, tuple[Callable[[], Law], Oracle]] = {
    "ratio": (lambda: Ratio(C, per="tensor"), ratio_of),
    "norm": (lambda: Norm(C), norm_of),
    "value": (lambda: Value(C), value_of),
    "rms": (lambda: RootMeanSquare(C, per="tensor"), rms_of),
}


@each_optimizer
@pytest.mark.parametrize("law", ORACLES)
def test_what_is_clipped_is_the_step_that_would_have_been(name: str, law: str):
    """Against a step of a copy of the optimizer, taken apart by hand. Each step's report is of itself."""
    make, clipped = ORACLES[law]
    model = network()
    optimizer, clip = made(name, model), Clipper(make(), on="update")
    acted = 0
    for step in range(6):
        backward(model, step)
        before = weights(model)
        its_model, its_optimizer = copy.deepcopy((model, optimizer))
        for p, q in zip(model.parameters(), its_model.parameters(), strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        its_optimizer.step()
        rates = {
            id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]
        }
        moves = [
            k for k, p in enumerate(model.parameters()) if p.grad is not None and rates[id(p)] > 0
        ]
        rate = [rates[id(p)] for p in model.parameters()]
        after = weights(its_model)
        u = [(before[k] - after[k]) / rate[k] for k in moves]
        v = clipped(u, [before[k] for k in moves])
        want = list(before)
        for k, each in zip(moves, v, strict=True):
            want[k] = before[k] - rate[k] * each

        raw = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        stats = clip(optimizer)
        assert same(raw, [p.grad for p in model.parameters()]), "gradients are measured only"
        length = torch.cat([g.flatten() for g in raw if g is not None]).norm()
        assert stats["norm"][""] == pytest.approx(float(length), rel=1e-12)
        assert stats["norm_clipped"][""] == stats["norm"][""]
        optimizer.step()
        for k, (got, wanted) in enumerate(zip(weights(model), want, strict=True)):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
            if k not in moves:
                assert torch.equal(got, before[k])
        (update,) = clip.updates
        flat, its = torch.cat([x.flatten() for x in u]), torch.cat([x.flatten() for x in v])
        assert update["norm"][""] == pytest.approx(float(flat.norm()), rel=1e-9)
        assert update["norm_clipped"][""] == pytest.approx(float(its.norm()), rel=1e-9)
        assert update["cosine"][""] == pytest.approx(
            float(flat @ its / flat.norm() / its.norm()), rel=1e-9
        )
        acted += int(float(its.norm()) < 0.99 * float(flat.norm()))
    assert acted >= 3


@pytest.mark.parametrize("law", ["norm", "value"])
def test_under_gradient_descent_it_is_clipping_the_gradient(law: str):
    models = [network(), network()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    clips = [Clipper(ORACLES[law][0](), on=on) for on in ("gradient", "update")]
    for step in range(6):
        for model, optimizer, clip in zip(models, optimizers, clips, strict=True):
            backward(model, step)
            clip(optimizer)
            optimizer.step()
        for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_stable_adamw():
    """lr / max(1, rms(u)) of each tensor (Wortsman et al. 2023, arXiv 2304.13013), u Adam's own update."""
    models, rate = [network(), network()], 0.01
    ours = torch.optim.AdamW(models[0].parameters(), lr=rate, weight_decay=0.0, betas=(0.5, 0.999))
    clip = Clipper(RootMeanSquare(1.0, per="tensor"), on="update")
    moments: dict[int, tuple[Tensor, Tensor]] = {}
    for step in range(8):
        for model in models:
            backward(model, step - step % 3)  # with all gradients
            for p in model.parameters():
                if p.grad is not None and step == 5:
                    p.grad *= 100
        clip(ours)
        ours.step()
        largest = 0.0
        with torch.no_grad():
            for k, p in enumerate(models[1].parameters()):
                if p.grad is None:
                    continue
                m, v = moments.get(k, (torch.zeros_like(p), torch.zeros_like(p)))
                m, v = 0.5 * m + 0.5 * p.grad, 0.999 * v + 0.001 * p.grad**2
                moments[k] = (m, v)
                t = step + 1
                u = m / (1 - 0.5**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                rms = float(u.square().mean().sqrt())
                largest = max(largest, rms)
                p -= rate / max(1.0, rms) * u
        for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert largest > 1.2 or step != 5


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_keep_their_bits_where_nothing_is_clipped(name: str, dtype: torch.dtype):
    """All of them at infinity; and those of a tensor, or elements, that a law leaves alone."""
    found = []
    for law in (None, Norm(math.inf), Value(math.inf), Norm(1e6, per="unit")):
        model = network(dtype)
        optimizer, clip = made(name, model), law and Clipper(law, on="update")
        for step in range(4):
            backward(model, step)
            if clip:
                clip(optimizer)
            optimizer.step()
        found.append((weights(model), optimizer.state_dict()["state"]))
    assert all(same(found[0], each) for each in found[1:])


def test_elements_that_are_left_alone_keep_their_bits():
    plain, clipped = network(torch.float32), network(torch.float32)
    clip = Clipper(Value(C), on="update")
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (plain, clipped)]
    before = weights(plain)
    for model in (plain, clipped):
        backward(model, 0)
    clip(optimizers[1])
    for optimizer in optimizers:
        optimizer.step()
    inside = 0
    for old, a, b in zip(before, weights(plain), weights(clipped), strict=True):
        small = ((old - a) / 0.01).abs() < 0.9 * C
        assert torch.equal(a[small], b[small])
        inside += int(small.sum())
    assert inside


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_that_is_not_finite(fused: bool):
    """A fused optimizer's step is left out, and has no update; another one's is what it makes of zeros."""
    model = network(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    clip = Clipper(Norm(C, per="modality", split="norm"), on="update")
    backward(model, 0)
    clip(optimizer)
    optimizer.step()
    before, state = weights(model), clip.state_dict()
    backward(model, 1)
    model[2].weight.grad[0, 0] = math.nan
    stats = clip(optimizer)
    optimizer.step()
    assert stats["norm"][""].isnan()
    assert same(before, weights(model)) == fused
    assert all(w.isfinite().all() for w in weights(model))
    assert (clip.updates[0]["norm"][""] == 0) == fused
    assert same(state["laws"], clip.state_dict()["laws"]) == fused


def test_a_step_that_was_not_made():
    model = network()
    clip = Clipper(Norm(C), on="update")
    backward(model, 0)
    clip(torch.optim.SGD(model.parameters(), lr=0.1))
    assert clip.updates == []
    assert clip.no_update()["norm"][""] == 0


def test_sparse_gradients():
    """What is clipped is dense: nothing of the table but the rows that were looked up moves."""
    for make in (lambda: Norm(C), lambda: Value(C), lambda: Norm(C, per="unit")):
        found = []
        for sparse in (True, False):
            torch.manual_seed(0)
            table = nn.Embedding(6, 3, sparse=sparse)
            optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
            clip = Clipper(make(), on="update")
            for _ in range(2):
                optimizer.zero_grad()
                table(torch.tensor([1, 1, 4])).square().sum().backward()
                clip(optimizer)
                optimizer.step()
            found.append((table.weight.detach(), clip.updates[0].by_scope()))
        torch.testing.assert_close(*found)


# Bound to an optimizer, and let go


def test_the_optimizer_is_needed():
    model = network()
    backward(model, 0)
    clip = Clipper(Norm(C), on="update")
    with pytest.raises(UserError, match=r"on=\"update\".*attach"):
        clip(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clip.attach(optimizer)
    clip(model.parameters())
    optimizer.step()
    assert len(clip.updates) == 1
    with pytest.raises(RuntimeError, match="before attach"):
        Clipper(Norm(C), on="update").attach(optimizer)


def test_one_optimizer_for_all_parameters():
    model = network()
    clip = Clipper(Norm(C), on="update")
    clip.bind({"all": dict(model.named_parameters())})
    optimizers = [torch.optim.SGD(model[k].parameters(), lr=0.1) for k in (0, 2)]
    with pytest.raises(UserError, match=r"one optimizer.*all/2\.weight.*a Clipper for each"):
        clip.attach(optimizers[0])
    for each in model[2], model[3]:
        each.requires_grad_(False)
    clip.attach(optimizers[0])  # what is frozen moves nowhere


def test_attached_twice_it_clips_once():
    found = []
    for times in (1, 3):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        clip = Clipper(Norm(C), on="update")
        clip.bind({"all": dict(model.named_parameters())})
        for _ in range(times):
            clip.attach(optimizer)
            if times > 1:
                clip.bind({"all": dict(model.named_parameters())})
                clip.attach(optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == 1  # pyright: ignore[reportAttributeAccessIssue]
        backward(model, 0)
        clip.apply()
        optimizer.step()
        assert len(clip.updates) == 1
        found.append(weights(model))
    assert same(*found)


def test_another_optimizer_takes_over_once_the_first_is_let_go():
    """E.g. one that is made afresh for a second training; without that, its steps would pass unclipped."""
    model = network()
    scopes = {"all": dict(model.named_parameters())}
    clip = Clipper(Norm(C), on="update")
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    backward(model, 0)
    clip(first)
    with pytest.raises(UserError, match=r"another optimizer.*a Clipper for each"):
        clip(second)
    first.step()
    assert len(clip.updates) == 1, "the first one is clipped as before"
    clip.bind(scopes)
    clip.attach(second)
    for optimizer, clipped in ((first, 0), (second, 1)):
        backward(model, 0)
        clip.apply()
        optimizer.step()
        assert len(clip.updates) == clipped
    del second, optimizer
    gc.collect()
    clip(first)  # nobody steps with the second one any more


def test_optimizers_of_other_parameters_want_a_clipper_each():
    """A law with nothing to learn would go from one to the other, and let the first one's step pass."""
    clip = Clipper(Norm(C), on="update")
    optimizers = [torch.optim.SGD(network().parameters(), lr=0.1) for _ in range(2)]
    clip(optimizers[0])
    with pytest.raises(UserError, match=r"another optimizer.*a Clipper for each"):
        clip(optimizers[1])


def test_a_dropped_clipper_leaves_no_hooks():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    for on in ("update", "gradient"):
        for _ in range(3):
            clip = Clipper(Norm(C), on=on)
            backward(model, 0)
            weight = model[0].weight.grad
            weight[0, 0] = torch.nan if on == "gradient" else 0.0  # so that its step is left out
            clip(optimizer)
            optimizer.step()
            del clip
            gc.collect()
        hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks  # pyright: ignore[reportAttributeAccessIssue]
        assert [len(each) for each in hooks] == [0, 0]


def test_within_a_step_it_is_too_late():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clip = Clipper(Norm(C), on="update")

    def closure() -> float:
        backward(model, 0)
        clip(optimizer)
        return 0.0

    with pytest.raises(RuntimeError, match="before its step"):
        optimizer.step(closure)
    optimizer.step(closure)
    assert len(clip.updates) == 1


def test_a_copy_is_attached_to_nothing_but_can_be():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    clip = Clipper(Norm(C), on="update")
    backward(model, 0)
    clip(optimizer)
    optimizer.step()
    its_model, its_optimizer, its_clip = copy.deepcopy((model, optimizer, clip))
    for one, opt, each in ((model, optimizer, clip), (its_model, its_optimizer, its_clip)):
        backward(one, 1)
        each(opt)
        opt.step()
        assert len(each.updates) == 1
    assert same(weights(model), weights(its_model))


def test_an_optimizer_does_not_keep_old_weights():
    """Without the garbage collector's help."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        clip = Clipper(Norm(C), on="update")
        backward(model, 0)
        clip(optimizer)
        optimizer.step()
        assert isinstance(clip._update, Update)
        old = [weakref.ref(t) for t in clip._update._old.values()]
        update = weakref.ref(clip._update)
        assert len(old) == 6
        del clip
        assert update() is None
        assert all(each() is None for each in old)
    finally:
        gc.enable()
    before = weights(model)
    backward(model, 1)
    optimizer.step()  # and goes on, unclipped
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(model), strict=True)])
    assert moved.norm() / 0.1 > 2 * C


# In a run


@pytest.mark.trains
@pytest.mark.parametrize(
    "words", [["optimizer=momentum"], ["optimizer=adamw", "optimizer.scopes={a: {lr: 0.001}}"]]
)
def test_columns_are_those_of_each_step(words: list[str], monkeypatch: pytest.MonkeyPatch):
    """Recomputed from the weights before and after each step; with a schedule, and a rate of one scope's own."""
    seen: list[dict[str, list[tuple[Tensor, float]]]] = []
    original = GradientPipeline.apply

    def watched(self: GradientPipeline, optimizer: Any, scaler: Any = None) -> Any:
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        named = {
            s: [(p.detach().clone(), rates[id(p)]) for p in n.values()]
            for s, n in self.scopes.items()
        }
        seen.append(named)
        return original(self, optimizer, scaler)

    monkeypatch.setattr(GradientPipeline, "apply", watched)
    common = [*SMALL, "clip.on=update", "trainer.max_epochs=2", "trainer.precision=64-true"]
    common += ["trainer.checkpoint=both", "trainer.log_every_n_steps=3", *words]
    for clip in ("clip=0.3", "clip=value_0.01", "clip=none"):
        seen.clear()
        record = fit(*common, clip)
        path = record["directory"] / "gradients.csv"
        assert len(seen) == record["steps"] == 8
        for scope in ("a", "objective", ""):
            lengths = []
            for now, later in pairwise(seen):
                pairs = [
                    (w, v, rate)
                    for s in now
                    if scope in ("", s)
                    for (w, rate), (v, _) in zip(now[s], later[s], strict=True)
                ]
                u = torch.cat([((w - v) / rate).flatten() for w, v, rate in pairs])
                lengths.append(float(u.norm()))
            end = f"/{scope}" if scope else ""
            after = column(path, f"update/norm_clipped{end}")
            assert after[:-1] == pytest.approx(lengths, rel=1e-6)
            norm = column(path, f"update/norm{end}")
            assert column(path, f"clip/coefficient{end}") == pytest.approx(after / norm, rel=1e-6)
            assert np.array_equal(
                column(path, f"grad/norm{end}"), column(path, f"grad/norm_clipped{end}")
            )
        norm, after = column(path, "update/norm"), column(path, "update/norm_clipped")
        if clip == "clip=0.3":
            assert (norm > 0.3).any()
            assert after == pytest.approx(norm.clip(max=0.3), rel=1e-9)
        if clip == "clip=none":
            assert np.array_equal(norm, after)
