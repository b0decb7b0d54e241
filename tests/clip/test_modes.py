"""Every way of training: loss scaling, fused optimizers, several of them, tied, frozen, absent, sparse, mixed gradients."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmrun.balance.none import NoBalance
from mmrun.clip.adaptive import Adaptive
from mmrun.clip.anatomy import anatomy
from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.memory import Field
from mmrun.clip.none import Unclipped
from mmrun.clip.norm import Norm
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients, InForce
from mmrun.clip.value import Value
from mmrun.errors import UserError
from mmrun.gradients import GradientPipeline
from tests.running import same

Make = Callable[[], Law]


class Follow(Adaptive):
    """c = m, m an EMA of norms: a law with state."""

    algorithm = "follow"

    def fields(self) -> dict[str, Field]:
        return {"mean": Field(1.0)}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return state["mean"], {"mean": 0.5 * state["mean"] + 0.5 * norms}


class Ratio(Scaling):
    """c_u = 0.1 ||w_u||."""

    algorithm = "ratio"

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:  # noqa: ARG002 (signature)
        return 0.1 * gradients.weight_norms(self.per).clamp(min=1e-3)


class SkipLong(Unclipped):
    """A step longer than 10 is left out."""

    algorithm = "skip_long"

    def clip(self, gradients: Gradients) -> InForce:
        skipped = gradients.joint()[0] > 10
        gradients.multiply(torch.where(skipped, 0.0, 1.0).reshape(1), "global")
        return super().clip(gradients)._replace(skipped=skipped)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(8, n, generator=generator) for n in (4, 1))
    return (3 * model(x) - y).square().mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "sgd fused": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    "sgd dampened fused": lambda ps: torch.optim.SGD(
        ps, lr=0.1, momentum=0.9, dampening=0.5, fused=True
    ),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.1),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=0.1, fused=True),
    "adagrad fused": lambda ps: torch.optim.Adagrad(ps, lr=0.1, fused=True),
}
FUSED = ("sgd fused", "adamw fused", "adagrad fused")
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_fused = pytest.mark.parametrize("name", FUSED)
LAWS: dict[str, Make] = {
    "norm": lambda: Norm(0.5),
    "value": lambda: Value(0.1),
    "follow": lambda: Follow(1.0, per="tensor"),
}
each_law = pytest.mark.parametrize("law", LAWS)


# Loss scaling


def train(
    name: str, law: str, steps: range | list[int], *, scale: float | None = None, bad: int = -1
) -> tuple[nn.Module, torch.optim.Optimizer, Clipper, torch.amp.GradScaler | None]:
    """Some steps; at ``bad`` the loss is infinite."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    clip = Clipper(LAWS[law]())
    pipeline = GradientPipeline(clip, NoBalance(), {"all": dict(model.named_parameters())})
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step) * (math.inf if step == bad else 1.0)
        (scaler.scale(loss) if scaler else loss).backward()
        pipeline.apply(optimizer, scaler)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return model, optimizer, clip, scaler


@each_optimizer
@each_law
def test_a_scaled_loss_is_a_loss(name: str, law: str):
    """A scale is a power of 2: training is the same bit for bit."""
    plain, optimizer, clip, _ = train(name, law, range(5))
    scaled, its_optimizer, its_clip, _ = train(name, law, range(5), scale=2.0**14)
    assert same(weights(plain), weights(scaled))
    assert same(optimizer.state_dict(), its_optimizer.state_dict())
    assert same(clip.state_dict(), its_clip.state_dict())


# torch itself spoils the first step of the dampened one.
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "dampened" not in name])
@each_law
def test_an_infinite_step_is_left_to_the_scaler(name: str, law: str):
    """It halves its scale and leaves the step out, as without a clip; nothing is learnt."""
    never, optimizer, clip, _ = train(name, law, [1, 2, 3], scale=2.0**14)
    model, its_optimizer, its_clip, scaler = train(name, law, range(4), scale=2.0**14, bad=0)
    assert scaler is not None
    assert scaler.get_scale() == 2.0**13
    assert same(clip.state_dict()["laws"], its_clip.state_dict()["laws"])
    assert same(weights(never), weights(model))
    assert same(optimizer.state_dict(), its_optimizer.state_dict())
    assert not hasattr(its_optimizer, "found_inf")


def test_a_law_that_skips_under_a_scaler_leaves_the_scale_alone():
    model = network()
    optimizer = OPTIMIZERS["adamw fused"](model.parameters())
    clip, scaler = Clipper(SkipLong()), torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, 1e4, 1.0):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, 0) * factor).backward()
        scaler.unscale_(optimizer)
        before, state = weights(model), copy.deepcopy(optimizer.state_dict())
        clip(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert same(before, weights(model)) == (factor > 1)
        assert same(state, optimizer.state_dict()) == (factor > 1)
    assert scaler.get_scale() == 4.0


# Fused optimizers


@each_fused
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_of_a_fused_optimizer_is_no_step(name: str, first: bool, bad: float):
    """Weights and moments keep their bits, and so does every later step; two groups."""

    def outcome(spoilt: bool) -> Any:
        model = network()
        head = list(model[2].parameters())
        rest = list(model[0].parameters())
        optimizer = OPTIMIZERS[name]([{"params": rest}, {"params": head, "lr": 0.01}])
        clip = Clipper(Norm(0.5))
        for step in range(4):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            clip(optimizer)
            optimizer.step()
            assert not hasattr(optimizer, "found_inf")
            if spoilt and step == (0 if first else 2):
                break
        if spoilt:
            before, state = weights(model), copy.deepcopy(optimizer.state_dict())
            gradient = model[2].weight.grad
            assert gradient is not None
            gradient[0, 0] = bad
            clip(optimizer)
            assert hasattr(optimizer, "found_inf")
            optimizer.step()
            assert same(before, weights(model))
            assert same(state, optimizer.state_dict())
            for later in range(step + 1, 4):
                optimizer.zero_grad()
                loss_of(model, later).backward()
                clip(optimizer)
                optimizer.step()
        return weights(model), optimizer.state_dict()

    assert same(outcome(True), outcome(False))


@each_fused
def test_a_first_step_that_is_skipped_leaves_no_rubbish(name: str):
    """torch 2.13 would keep an uninitialised momentum."""
    model = network()
    optimizer, clip = OPTIMIZERS[name](model.parameters()), Clipper(Norm(0.5))
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    junk = [torch.full_like(p, 7.0) for p in model.parameters() for _ in range(20)]
    del junk
    clip(optimizer)
    optimizer.step()
    assert same(before, weights(model))
    for state in optimizer.state.values():
        for value in state.values():
            assert not value.any()


def test_a_mark_does_not_outlive_its_step():
    """Also where the step that it was for was never made by the optimizer's own hand."""
    model = network()
    optimizer, clip = OPTIMIZERS["adamw fused"](model.parameters()), Clipper(Norm(0.5))
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    clip(optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    clip(optimizer)  # again, and finite by now
    before = weights(model)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_a_plain_optimizer_takes_a_skipped_step_as_one_of_zeros():
    model = network()
    optimizer, clip = torch.optim.SGD(model.parameters(), lr=0.1), Clipper(SkipLong())
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    clip(optimizer)
    optimizer.step()
    assert same(before, weights(model))
    assert not hasattr(optimizer, "found_inf")


def test_what_cannot_skip_is_given_zeros():
    """Half fused groups, dampened momentum, a law's skip: no NaN gets through."""
    for name in ("sgd dampened fused", "sgd"):
        model = network()
        optimizer, clip = OPTIMIZERS[name](model.parameters()), Clipper(Norm(0.5))
        for p in model.parameters():
            p.grad = torch.full_like(p, math.nan)
        before = weights(model)
        clip(optimizer)
        optimizer.step()
        assert same(before, weights(model))


# Several optimizers, and other parameters from step to step


def test_a_law_that_has_learnt_is_for_one_optimizer():
    one, other = network(0), network(1)
    law, clip = Follow(1.0), Clipper(Follow(1.0))
    for model in (one, other):
        loss_of(model, 0).backward()
    for each in (law, clip):
        each(torch.optim.SGD(one.parameters(), lr=0.1))
        state = copy.deepcopy(each.state_dict())
        with pytest.raises(UserError, match=r"other parameters.*a law for each optimizer"):
            each(torch.optim.SGD(other.parameters(), lr=0.1))
        fresh = Follow(1.0) if isinstance(each, Follow) else Clipper(Follow(1.0))
        fresh(torch.optim.SGD(other.parameters(), lr=0.1))
        assert not same(fresh.state_dict(), state)


@pytest.mark.parametrize("knobs", [{"warmup": 3}, {"schedule": "linear", "total_steps": 9}])
def test_an_engine_that_counts_steps_is_for_one_optimizer(knobs: dict[str, Any]):
    one, other = network(0), network(1)
    for model in (one, other):
        loss_of(model, 0).backward()
    clip = Clipper(Norm(1.0), **knobs)
    clip(one.parameters())
    with pytest.raises(UserError, match="other parameters"):
        clip(other.parameters())


def test_a_law_with_nothing_to_learn_takes_whatever_comes():
    """E.g. a generator's and a discriminator's optimizer in turn."""
    for each in (Norm(0.5), Clipper(Norm(0.5))):
        for model in (network(0), network(1), network(0)):
            loss_of(model, 0).backward()
            assert each(torch.optim.SGD(model.parameters(), lr=0.1))["norm_clipped"][""] <= 0.5001


def test_two_optimizers_with_a_clip_each():
    """They keep apart what they learn, also where parameters are named by position."""
    models = [network(0), network(1)]
    together = [Clipper(Follow(1.0, per="tensor")) for _ in models]
    for step in range(3):
        for model, clip in zip(models, together, strict=True):
            model.zero_grad()
            loss_of(model, step).backward()
            clip(torch.optim.SGD(model.parameters(), lr=0.1))
    for k, clip in enumerate(together):
        alone, model = Clipper(Follow(1.0, per="tensor")), network(k)
        for step in range(3):
            model.zero_grad()
            loss_of(model, step).backward()
            alone(model.parameters())
        assert same(alone.state_dict(), clip.state_dict())


def test_a_parameter_keeps_its_own_in_another_place():
    """A list that grows at its front: positions are names, but not what a state belongs to."""
    a, b, c = (nn.Parameter(torch.ones(3)) for _ in range(3))
    for each in (Follow(1.0, per="tensor"), Clipper(Follow(1.0, per="tensor"))):
        a.grad, b.grad = torch.full((3,), 2.0), torch.full((3,), 9.0)
        each([a, b])

        def means(state: Any) -> list[float]:
            state = state["laws"][""]["state"] if "laws" in state else state
            return [round(float(v), 3) for v in state["mean"].values()]

        first = means(each.state_dict())
        b.grad = torch.full((3,), 9.0)
        each([c, b])
        assert means(each.state_dict()) == [1.0, pytest.approx((first[1] + 9 * 3**0.5) / 2, 0.01)]


def test_a_module_in_shards_since_takes_up_its_state_by_name():
    """Other objects under the same names, next to one that stayed."""
    model = network()
    law = Follow(1.0, per="tensor")
    loss_of(model, 0).backward()
    law(model)
    state = law.state_dict()
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    law(model)
    assert same(
        law.state_dict()["mean"]["parameters/0.weight"], state["mean"]["parameters/0.weight"]
    )


def test_a_gradient_that_comes_and_goes():
    model = network()
    law, skipping = Follow(1.0, per="tensor"), Follow(1.0, per="tensor")
    for step in range(4):
        model.zero_grad()
        loss_of(model, step).backward()
        if step % 2:
            model[0].weight.grad = None
            model[2].requires_grad_(False)  # frozen in between
        kept = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        stats = law(model.parameters())
        model[2].requires_grad_(True)
        for p, g in zip(model.parameters(), kept, strict=True):
            p.grad = g
        skipping(model.parameters())
        assert (stats["norm"][""] > 0).item()
    assert same(law.state_dict(), skipping.state_dict())


def test_tied_weights_count_once_within_a_scope_and_not_across():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    norm = Norm(1.0)({"text": {"in": weight, "out": weight}})["norm"]["text"]
    assert norm == 5
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))
    for each in (Norm(1.0), Clipper(Norm(1.0)), Clipper(Norm(1.0), scopes={"b": Value(1.0)})):
        with pytest.raises(UserError, match=r"two scopes.*a/w and b/v.*shared"):
            each({"a": {"w": weight}, "b": {"v": weight}})
    again = Norm(1.0)
    again([weight])
    again([weight])  # a call that was refused leaves nothing half bound


def test_a_refused_binding_leaves_the_engine_as_it_was():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    clip = Clipper(Norm(1.0))
    clip({"a": {"w": weight}})
    with pytest.raises(UserError, match="two scopes"):
        clip({"a": {"w": weight}, "b": {"v": weight}})
    assert clip({"a": {"w": weight}})["norm"][""] == pytest.approx(1.0)
    assert clip.steps == 2


# Shapes, dtypes, devices


ALL_LAWS: dict[str, Make] = {
    **LAWS,
    "norm p=1": lambda: Norm(2.0, p=1.0),
    "norm p=inf": lambda: Norm(0.1, p=math.inf),
    "norm per modality": lambda: Norm(0.5, per="modality"),
    "norm per tensor": lambda: Norm(0.5, per="tensor"),
    "norm per unit": lambda: Norm(0.5, per="unit"),
    "norm per unit p=1": lambda: Norm(0.5, p=1.0, per="unit", budget="each"),
    "norm per unit p=inf": lambda: Norm(0.1, p=math.inf, per="unit", budget="each"),
    "follow per unit": lambda: Follow(1.0, per="unit"),
    "ratio per tensor": lambda: Ratio(1.0, per="tensor"),
    "ratio per unit": lambda: Ratio(1.0, per="unit"),
}
any_law = pytest.mark.parametrize("law", ALL_LAWS)


@any_law
def test_no_elements_and_no_dimensions(law: str):
    """Parameters without elements are as if they were not; one without dimensions is one unit."""
    outcomes = []
    for shapes in ([(), (2, 3)], [(0,), (), (0, 3), (2, 3), (3, 0)]):
        ps = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        for p in ps:
            p.grad = torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape) + 2
        stats = ALL_LAWS[law]()(ps).by_scope()
        outcomes.append((stats, [p.grad for p in ps if p.numel()]))
    assert same(*outcomes)


@any_law
def test_mixed_dtypes_in_a_scope_are_clipped_as_one(law: str):
    """fp16, bf16, fp32 and fp64: each keeps its dtype, and the joint norm is that of all of them."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    torch.manual_seed(0)
    gradients = [torch.randn(4, 3).to(dtype) for dtype in dtypes]
    outcomes = []
    for wide in (False, True):
        ps = [nn.Parameter(torch.ones_like(g.double() if wide else g)) for g in gradients]
        for p, g in zip(ps, gradients, strict=True):
            p.grad = g.to(p.dtype, copy=True)
        stats = ALL_LAWS[law]()(ps)
        assert [p.grad.dtype for p in ps if p.grad is not None] == [p.dtype for p in ps]
        outcomes.append((stats, [p.grad for p in ps]))
    (mixed, low), (alone, high) = outcomes
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed["norm"][""], alone["norm"][""], rtol=1e-14, atol=0)
    for a, b in zip(low, high, strict=True):
        assert a is not None
        assert b is not None
        rtol = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}.get(a.dtype, 1e-12)
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=1e-7)


def test_a_gradients_dtype_may_change():
    """What is known of a step is of these gradients, not of those before."""
    p = nn.Parameter(torch.ones(2))
    law = Norm(1.0)
    p.grad = torch.tensor([3.0, 4.0])
    assert law([p]).dtype == torch.float32
    p.data, p.grad = p.data.double(), None
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert law([p]).dtype == torch.float64


class NoEarlyReads(TorchDispatchMode):
    """A copy to the CPU that nobody waits for is read before it has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_cpu = kwargs.get("device") is not None and kwargs["device"].type == "cpu"
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cuda" and to_cpu:
            self.copies += 1
            assert not kwargs.get("non_blocking")
        return func(*args, **kwargs)


@any_law
def test_mixed_devices_in_a_scope(law: str):
    """Devices that are made up: no law stumbles, and nothing is read too early."""
    with FakeTensorMode(), NoEarlyReads() as reads:
        ps = [nn.Parameter(torch.ones(4, 3, device=d)) for d in ("cpu", "cuda", "cpu")]
        for p in ps:
            p.grad = torch.randn(4, 3, device=p.device)
        for each in (ALL_LAWS[law](), Clipper(ALL_LAWS[law](), floor=0.1)):
            each(ps).by_scope()
    assert reads.copies


# Sparse gradients


class Tables(nn.Module):
    """An embedding, a weight of another kind, and an embedding that nothing is looked up in."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4, sparse=sparse)
        self.mix = nn.Linear(4, 3)
        self.unused = nn.Embedding(5, 4, sparse=sparse)

    def forward(self, ids: Tensor) -> Tensor:
        nothing = self.unused(ids[:0]).sum(0)
        return self.mix(torch.tanh(self.table(ids)) + nothing)


def tables_loss(model: Tables, step: int) -> Tensor:
    ids = torch.randint(0, 9, (12,), generator=torch.Generator().manual_seed(step))
    ids[:3] = 4  # one row three times: not coalesced
    return model(ids).square().sum()


@any_law
@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("optimizer", ["SGD", "SparseAdam"])
def test_sparse_gradients_are_clipped_as_dense_ones(law: str, engine: bool, optimizer: str):
    """Statistics, state, gradients and the training that follows."""
    found = []
    for sparse in (True, False):
        model = Tables(sparse)
        tables = [model.table.weight, model.unused.weight]
        if optimizer == "SGD" or not sparse:
            optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
        else:
            optimizers = [
                torch.optim.SparseAdam(tables, lr=0.1),
                torch.optim.SGD(model.mix.parameters(), lr=0.1),
            ]
        clip = Clipper(ALL_LAWS[law](), floor=0.01) if engine else ALL_LAWS[law]()
        scopes = {
            "text": {"table": model.table.weight},
            "rest": {"unused": model.unused.weight, **dict(model.mix.named_parameters())},
        }
        clip.bind(scopes, anatomy(model))
        rows: list[Any] = []
        for step in range(3 if optimizer == "SGD" else 1):
            for each in optimizers:
                each.zero_grad()
            tables_loss(model, step).backward()
            if sparse:
                gradient = model.table.weight.grad
                assert gradient is not None
                assert gradient.is_sparse
                assert not gradient.is_coalesced()
            stats = clip.apply()
            rows.append((stats.by_scope(), stats.payer))
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            rows.append([g.to_dense() for g in gradients])
            for each in optimizers:
                each.step()
        if optimizer == "SGD":
            rows.append(weights(model))
        rows.append(clip.state_dict())
        found.append(rows)
    close(*found)


def close(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    elif isinstance(a, Mapping):
        assert a.keys() == b.keys()
        for key in a:
            close(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            close(x, y)
    else:
        assert a == b


def test_a_gradient_that_is_sparse_at_some_steps():
    """A table that is looked up, and at other steps is used as a matrix as well."""
    laws = {True: Norm(0.5, per="unit"), False: Norm(0.5, per="unit")}
    models = {sparse: nn.Embedding(6, 3, sparse=sparse) for sparse in laws}
    models[False].load_state_dict(models[True].state_dict())
    for step in range(4):
        for sparse, law in laws.items():
            model = models[sparse]
            model.zero_grad()
            loss = model(torch.tensor([1, 1, 4])).square().sum()
            if step % 2 == 0:
                loss = loss + model.weight.sum()
            loss.backward()
            assert model.weight.grad is not None
            assert model.weight.grad.is_sparse == (sparse and step % 2 == 1)
            law(model)
        grads = [m.weight.grad for m in models.values()]
        close(*[g.to_dense() for g in grads if g is not None])


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_sparse_gradient_that_is_not_finite(policy: Any):
    model = Tables(True)
    clip = Clipper(Norm(0.5), nonfinite=policy)
    tables_loss(model, 0).backward()
    gradient = model.table.weight.grad
    assert gradient is not None
    gradient._values()[0, 0] = math.nan
    clip(model)
    gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients) == (policy == "zero")


def test_other_sparse_gradients_are_refused():
    p = nn.Parameter(torch.ones(3, 3))
    p.grad = torch.eye(3).to_sparse()
    with pytest.raises(UserError, match=r"sparse ones of embeddings.*parameters/0"):
        Norm(1.0)([p])


# Bound, let go, copied


def test_copies_of_a_law_and_of_an_optimizer_go_their_own_way():
    for how in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        model = network()
        pair = (model, Clipper(Follow(1.0, per="tensor")), torch.optim.AdamW(model.parameters()))
        for step in range(2):
            loss_of(model, step).backward()
            pair[1](model)
        its_model, its_clip, its_optimizer = how(pair)
        assert same(its_clip.state_dict(), pair[1].state_dict())
        model.zero_grad()
        its_model.zero_grad()
        for one, clip in ((model, pair[1]), (its_model, its_clip)):
            loss_of(one, 3).backward()
            clip(one)
        assert same(its_clip.state_dict(), pair[1].state_dict())
        assert its_optimizer.param_groups[0]["params"][0] is next(its_model.parameters())
        assert all(
            torch.equal(a, b) for a, b in zip(weights(model), weights(its_model), strict=True)
        )


def test_a_clip_that_is_dropped_lets_parameters_go():
    model = network()
    clip = Clipper(Norm(1.0))
    loss_of(model, 0).backward()
    clip(torch.optim.SGD(model.parameters(), lr=0.1))
    weight = weakref.ref(model[0].weight)
    del model, clip
    gc.collect()
    assert weight() is None
