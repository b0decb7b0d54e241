"""Clipping by two processes (gloo, CPU): what ``test_distributed.py`` runs once, and reads case by case.

    python -m tests.clip.two_ranks RANK DIRECTORY

Each rank writes <DIRECTORY>/<rank>.json, {case: "" or what went wrong}, up to the first that went wrong.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mmrun.clip.adaptive import Adaptive
from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.memory import Field
from mmrun.clip.norm import Norm
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients, InForce
from mmrun.clip.value import Value
from mmrun.errors import UserError

CASES: dict[str, Callable[[], None]] = {}
Make = Callable[[], Law | Clipper]


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


class Follow(Adaptive):
    """c = 1.1 m, m an EMA of norms: a law with state, at every granularity."""

    algorithm = "follow"

    def fields(self) -> dict[str, Field]:
        return {"mean": Field(0.5), "last": Field(0.0, (3,))}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        limit = 1.1 * state["mean"]
        last = torch.cat((state["last"][:, 1:], norms.unsqueeze(1)), dim=1)
        mean = 0.7 * state["mean"] + 0.3 * torch.minimum(norms, limit)
        return limit, {"mean": mean, "last": last}


class Ratio(Scaling):
    """c_u = 0.1 ||w_u||: a bound that follows from weights."""

    algorithm = "ratio"

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:  # noqa: ARG002 (signature)
        return 0.1 * gradients.weight_norms(self.per).clamp(min=1e-3)


class ScaleThenValue(Norm):
    """Norm clipping, then value clipping: a multiplication that is carried out before elements change."""

    algorithm = "scale_then_value"

    def clip(self, gradients: Gradients) -> InForce:
        super().clip(gradients)
        return Value(0.02).clip(gradients)


class Model(nn.Module):
    """Parameters that are cut up in every way there is; three scopes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.image = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4))  # 7 rows: uneven
        self.text = nn.ModuleList([nn.ConvTranspose2d(3, 5, 2), nn.Embedding(9, 2)])
        self.head = nn.Linear(4, 1)  # one row: the second rank has none
        self.plain = nn.Parameter(torch.randn(3, 2))  # stays a plain tensor
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.image(x)))


def scopes(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    found: dict[str, dict[str, nn.Parameter]] = {"image": {}, "text": {}, "rest": {}}
    for name, p in model.named_parameters():
        scope = name.split(".")[0]
        found[scope if scope in found else "rest"][name] = p
    return found


def anatomy_of(model: nn.Module) -> Any:
    from mmrun.clip.anatomy import anatomy

    return anatomy(model)


def sharded(mesh: DeviceMesh) -> Model:
    model = Model()
    fully_shard(model, mesh=mesh, ignored_params={model.plain})
    return model


def meshes() -> dict[str, DeviceMesh]:
    names = ("replicate", "shard")
    return {
        "fsdp": init_device_mesh("cpu", (2,)),
        "hsdp 1x2": init_device_mesh("cpu", (1, 2), mesh_dim_names=names),
        "hsdp 2x1": init_device_mesh("cpu", (2, 1), mesh_dim_names=names),
    }


def fill(whole: nn.Module, parts: nn.Module, step: int, *, bad: float | None = None) -> None:
    """The same gradients for both; at step 1 one is absent, and another is zero."""
    generator = torch.Generator().manual_seed(step)
    for (name, p), q in zip(whole.named_parameters(), parts.parameters(), strict=True):
        g = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 2.0**step
        if step == 1 and name == "image.1.weight":
            p.grad = q.grad = None
            continue
        if step == 1 and name == "text.0.bias":
            g.zero_()
        if bad is not None and name == "image.0.weight":
            g[-1, 0] = bad  # lies on the second rank alone
        p.grad = g.clone()
        q.grad = distribute_tensor(g, q.device_mesh, q.placements) if isinstance(q, DTensor) else g


def full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_equal(
    whole: nn.Module, parts: nn.Module, what: str = "grad", rtol: float = 1e-11
) -> None:
    for (name, p), q in zip(whole.named_parameters(), parts.parameters(), strict=True):
        a, b = (p.grad, q.grad) if what == "grad" else (p.detach(), q.detach())
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(
                full(b), a, rtol=rtol, atol=1e-13, msg=lambda m, n=name: n + m
            )


def check_state(alone: Any, together: Any) -> None:
    """The same names and, up to rounding, numbers; on all ranks the same bits."""
    if isinstance(alone, Mapping):
        assert alone.keys() == together.keys()
        for key in alone:
            check_state(alone[key], together[key])
    elif isinstance(alone, Tensor):
        torch.testing.assert_close(together, alone, rtol=1e-11, atol=0)
        every: list[Any] = [None, None]
        dist.all_gather_object(every, together)
        assert torch.equal(*every)
    else:
        assert alone == together


def check_stats(alone: Any, together: Any) -> None:
    a, b = alone.by_scope(), together.by_scope()
    for field in a:
        torch.testing.assert_close(b[field], a[field], rtol=1e-11, atol=1e-14, msg=field)
    torch.testing.assert_close(together.payer, alone.payer, rtol=1e-11, atol=0)


LAWS: dict[str, Make] = {
    "norm": lambda: Norm(0.5),
    "norm off": lambda: Norm(math.inf),
    "norm p=1": lambda: Norm(3.0, p=1.0),
    "norm p=3.5": lambda: Norm(0.5, p=3.5),
    "norm p=inf": lambda: Norm(0.3, p=math.inf),
    "norm per modality": lambda: Norm(0.5, per="modality"),
    "norm per modality by size": lambda: Norm(0.5, per="modality", split="size"),
    "norm per modality by norm": lambda: Norm(0.5, per="modality", split="norm"),
    "norm per tensor": lambda: Norm(0.5, per="tensor"),
    "norm per tensor p=inf": lambda: Norm(0.5, per="tensor", p=math.inf, budget="each"),
    "norm per unit": lambda: Norm(0.5, per="unit"),
    "norm per unit each": lambda: Norm(1.5, per="unit", budget="each"),
    "norm per unit by size": lambda: Norm(0.5, per="unit", split="size"),
    "norm per unit by norm": lambda: Norm(0.5, per="unit", split="norm"),
    "norm per unit p=inf": lambda: Norm(0.5, per="unit", p=math.inf, budget="each"),
    "norm per unit p=1": lambda: Norm(5.0, per="unit", p=1.0),
    "value": lambda: Value(0.05),
    "value off": lambda: Value(math.inf),
    "scale then value": lambda: ScaleThenValue(0.5, per="unit"),
    "follow": lambda: Follow(1.0),
    "follow per modality": lambda: Follow(1.0, per="modality"),
    "follow per tensor": lambda: Follow(1.0, per="tensor"),
    "follow per unit": lambda: Follow(1.0, per="unit"),
    "ratio per modality": lambda: Ratio(1.0, per="modality"),
    "ratio per tensor": lambda: Ratio(1.0, per="tensor"),
    "ratio per unit": lambda: Ratio(1.0, per="unit"),
    "engine": lambda: Clipper(Norm(0.5), scopes={"text": Value(0.05)}, floor=0.2),
    "engine per unit": lambda: Clipper(Follow(1.0, per="unit"), floor=0.5),
}


def check_law(make: Make, mesh: DeviceMesh) -> None:
    whole, parts = Model(), sharded(mesh)
    alone, together = make(), make()
    alone.bind(scopes(whole), anatomy_of(whole))
    together.bind(scopes(parts), anatomy_of(parts))
    for step in range(3):
        fill(whole, parts, step)
        check_stats(alone.apply(), together.apply())
        check_equal(whole, parts)
    check_state(alone.state_dict(), together.state_dict())
    # A state moves between shards and the whole, both ways.
    alone_again, together_again = make(), make()
    alone_again.bind(scopes(whole), anatomy_of(whole))
    together_again.bind(scopes(parts), anatomy_of(parts))
    alone_again.load_state_dict(together.state_dict())
    together_again.load_state_dict(alone.state_dict())
    fill(whole, parts, 4)
    check_stats(alone_again.apply(), together_again.apply())
    check_equal(whole, parts)


# On replicas of shards a choice of them: each takes 0.1 s.
REPLICATED = (
    "norm",
    "norm p=inf",
    "norm per modality",
    "norm per unit",
    "value",
    "engine per unit",
)
LAW_CASES = [f"{law}, fsdp" for law in LAWS] + [
    f"{law}, {mesh}" for mesh in ("hsdp 1x2", "hsdp 2x1") for law in REPLICATED
]


def _laws() -> None:
    on = meshes()
    for name in LAW_CASES:
        law, mesh = name.split(", ")
        CASES[name] = lambda m=LAWS[law], on=on[mesh]: check_law(m, on)


@case
def a_shard_is_empty() -> None:
    """Otherwise the cases above show nothing."""
    parts = sharded(init_device_mesh("cpu", (2,)))
    sizes = [p.to_local().numel() for p in parts.head.parameters() if isinstance(p, DTensor)]
    assert sizes == ([4, 1] if dist.get_rank() == 0 else [0, 0])
    assert not isinstance(parts.plain, DTensor)


@case
def numbers_of_torch() -> None:
    """clip_grad_norm_ on the same DTensors, with its eps."""
    for p in (1.0, 2.0, math.inf):
        mesh = init_device_mesh("cpu", (2,))
        ours, theirs, whole = sharded(mesh), sharded(mesh), Model()
        for model in (ours, theirs):
            fill(whole, model, 0)
            model.plain.grad = None  # torch does not mix plain tensors and DTensors
            model.head.zero_grad()  # nor takes the largest element of an empty shard
        law = Norm(0.5, p=p, eps=1e-6)
        stats = law(list(ours.parameters()))
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5, norm_type=p)
        if p == 2:
            torch.testing.assert_close(stats["norm"][""], full(norm), rtol=1e-14, atol=0)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            if b.grad is not None:
                torch.testing.assert_close(full(a.grad), full(b.grad), rtol=1e-13, atol=0)


@case
def a_step_that_is_not_finite_on_one_rank() -> None:
    """Both ranks decide alike, and the state is as if the step had not been."""
    for bad in (math.nan, math.inf):
        for policy in ("skip", "zero", "pass"):
            mesh = init_device_mesh("cpu", (2,))
            whole, parts = Model(), sharded(mesh)
            alone, together, never = (
                Clipper(Follow(1.0, per="modality"), nonfinite=policy) for _ in range(3)
            )
            alone.bind(scopes(whole))
            never.bind(scopes(whole))
            together.bind(scopes(parts))
            for step in range(3):
                fill(whole, parts, step, bad=bad if step == 1 else None)
                if step == 1:
                    lies_here = any(
                        not g.to_local().isfinite().all()
                        for p in parts.parameters()
                        if isinstance(g := p.grad, DTensor)
                    )
                    assert lies_here == (dist.get_rank() == 1)
                a, b = alone.apply(), together.apply()
                torch.testing.assert_close(b.raw, a.raw, equal_nan=True)
                for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
                    if p.grad is not None:
                        torch.testing.assert_close(full(q.grad), p.grad, equal_nan=True)
                        if step == 1 and policy == "skip":
                            assert not p.grad.any()
                if step != 1:
                    fill(whole, parts, step)
                    never.apply()
            check_state(alone.state_dict()["laws"], together.state_dict()["laws"])
            if policy == "skip":
                check_state(never.state_dict()["laws"], together.state_dict()["laws"])


@case
def a_sum_that_has_not_been_carried_out() -> None:
    mesh = init_device_mesh("cpu", (2,))
    parts = sharded(mesh)
    weight: Any = parts.image[0].weight
    weight.grad = DTensor.from_local(torch.ones(7, 5, dtype=torch.float64), mesh, [Partial()])
    with pytest.raises(UserError, match="has not been summed"):
        Norm(1.0)(parts.parameters())


@case
def training_in_shards_is_training_as_a_whole() -> None:
    """FSDP2's own reduction and an optimizer on shards, also where it is the update that is clipped."""
    for make in (
        lambda: Clipper(Norm(0.05)),
        lambda: Clipper(Value(0.01)),
        lambda: Clipper(Follow(1.0, per="tensor")),
        lambda: Clipper(Norm(0.5, per="unit"), on="update"),
        lambda: Clipper(Value(0.3), on="update"),
    ):
        torch.manual_seed(3)
        x, y = torch.randn(4, 8, 5).double(), torch.randn(4, 8, 1).double()
        whole, parts = Model(), sharded(init_device_mesh("cpu", (2,)))
        alone, together = make(), make()
        rank = dist.get_rank()
        optimizers: dict[nn.Module, torch.optim.Optimizer] = {}
        for step in range(4):
            stats: list[Any] = []
            for model, clip, its in (
                (whole, alone, slice(None)),
                (parts, together, slice(4 * rank, 4 * rank + 4)),
            ):
                if step == 0:
                    clip.bind(scopes(model))
                    cut = [p for p in model.parameters() if p is not model.plain]
                    groups = [{"params": cut}, {"params": [model.plain], "lr": 0.1}]
                    optimizers[model] = torch.optim.AdamW(groups, lr=0.05, foreach=True)
                optimizer = optimizers[model]
                optimizer.zero_grad()
                (model(x[step, its]) - y[step, its]).square().mean().backward()
                stats.append(clip.apply(optimizer))
                optimizer.step()
                stats += clip.updates
            half = len(stats) // 2
            for a, b in zip(stats[:half], stats[half:], strict=True):
                check_stats(a, b)
            check_equal(whole, parts, "weights", rtol=1e-9)
        check_state(alone.state_dict(), together.state_dict())


@case
def percentiles_of_units_in_shards() -> None:
    whole, parts = Model(), sharded(init_device_mesh("cpu", (2,)))
    found: list[tuple[Norm, list[Tensor]]] = []
    for model in (whole, parts):
        law = Norm("p50", per="unit")
        law.bind(scopes(model), anatomy_of(model))
        found.append((law, []))
    for step in range(4):
        fill(whole, parts, step)
        for law, norms in found:
            norms.append(Gradients(*law.layout.gather()).unit_norms("unit"))
    for law, norms in found:
        law.calibrate(torch.stack(norms))
    (alone, _), (together, _) = found
    check_state(alone.state_dict(), together.state_dict())
    fill(whole, parts, 3)
    check_stats(alone.apply(), together.apply())
    check_equal(whole, parts)


@case
def ddp_is_one_process_with_the_whole_batch() -> None:
    for make in (
        lambda: Clipper(Norm(0.05)),
        lambda: Clipper(Value(0.005)),
        lambda: Clipper(Norm(0.05, per="modality")),
        lambda: Clipper(Follow(1.0, per="modality"), schedule="cosine", total_steps=4),
        lambda: Clipper(Follow(1.0, per="unit")),
    ):
        torch.manual_seed(3)
        x, y = torch.randn(4, 8, 5).double(), torch.randn(4, 8, 1).double()
        whole, copied = Model(), Model()
        parallel = DistributedDataParallel(copied, find_unused_parameters=True)
        alone, together = make(), make()
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (whole, copied)]
        alone.bind(scopes(whole))
        together.bind(scopes(copied))
        half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
        for step in range(4):
            for each in optimizers:
                each.zero_grad()
            (whole(x[step]) - y[step]).square().mean().backward()
            # Two micro-batches of each rank: one clip, after accumulation and reduction.
            mine, target = x[step, half], y[step, half]
            with parallel.no_sync():
                ((parallel(mine[:2]) - target[:2]).square().mean() / 2).backward()
            ((parallel(mine[2:]) - target[2:]).square().mean() / 2).backward()
            check_stats(alone.apply(optimizers[0]), together.apply(optimizers[1]))
            check_equal(whole, copied, rtol=1e-9)
            for each in optimizers:
                each.step()
        check_equal(whole, copied, "weights", rtol=1e-9)
        check_state(alone.state_dict(), together.state_dict())
        for p in copied.parameters():
            every: list[Any] = [None, None]
            dist.all_gather_object(every, copy.deepcopy(p.detach()))
            assert torch.equal(*every)


def main() -> None:
    rank, directory = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    _laws()
    found: dict[str, str] = {}
    for name, run in CASES.items():
        try:
            run()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc(limit=-6)
            break  # what a rank did not take part in, the others would wait for
    (directory / f"{rank}.json").write_text(json.dumps(found))
    if not any(found.values()):
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
