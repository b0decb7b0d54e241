"""What do the first batches look like on the initial weights? Bounds given as percentiles become numbers before training."""

from __future__ import annotations

import contextlib
import copy
import os
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mmrun.bounds import Bound, Calibrated
from mmrun.build import Built
from mmrun.clip.boundary import Measure
from mmrun.clip.percentile import bound_at
from mmrun.module import MultimodalModule, cast, sum_of
from mmrun.trainer import limited
from mmrun.watching import UNWATCHED, Watch

Array = NDArray[np.float64]
QUANTILES = (50, 90, 99)
MOST_UNITS = 8  # thresholds that are told one by one


def run_batches(
    built: Built,
    batches: int,
    *,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    watch: Watch = UNWATCHED,
    measure: Callable[[MultimodalModule], None] | None = None,
) -> int:
    """Run the first batches of epoch 0 forward and backward, as training will; how many steps that was.

    All happens on a copy of the module: weights, gradients, buffers, the states of objective, balance and clip law,
    and the modes of its parts are untouched by construction, and so are all random numbers. The copy is in training
    mode and in the type of the training's autocast; its losses are scaled, accumulated and, under per-loss balancing,
    combined as in training, but nothing modulates or clips the gradients and no weight moves.

    With several ranks each runs its share of every batch; gradients are averaged over them before ``measure``,
    which is then called alike on all. What ``watch`` has seen is a rank's own: ``of_all_ranks`` joins it.

    Args:
        built: of the point, before its training.
        batches: at most so many; never more than an epoch has.
        seed: of the random numbers that are drawn (dropout, missing modalities); per rank another one.
        device: where to run.
        rank: which of the ranks this is.
        world: number of ranks.
        watch: looks on at every forward and backward pass.
        measure: called once per optimizer step's worth of micro-batches with the copy, whose ``.grad`` is what the
            pipeline would get; ``module.pipeline`` is that of the copy, bound to its parameters.
    """
    loader = built.loader("train", shuffle=True, device=device, rank=rank, world=world)
    most = limited(built.options.limit_train_batches, len(loader))
    if world > 1:
        _meet(device)
    with _apart(seed, device, deterministic=built.options.deterministic):
        module = copy.deepcopy(built.module).to(device).train()
        module.model.gradient_scale = float(world)
        done, steps = 0, 0
        last = min(batches, most)
        for batch in islice(loader, last):
            with module.computing():
                batch = cast(batch.to(device), module.dtype_of_weights)
                losses = module.losses(batch, module(batch, watch))
            if module.objective.sums and world > 1:
                losses = {name: loss * world for name, loss in losses.items()}
            if module.balance.per_loss:
                module.take_gradients(losses)
            else:
                (sum_of(losses) / module.accumulate).backward()
            done += 1
            if done % module.accumulate and done < last:
                continue
            steps += 1
            if module.balance.per_loss:
                module.combine_gradients()
            elif world > 1:
                _average(module, world)
            if measure is not None:
                measure(module)
            module.zero_grad()
    return steps


def of_all_ranks(values: Array) -> Array:
    """What every rank has measured [n], one after the other: the same on all ranks."""
    if not dist.is_initialized():
        return values
    parts: list[Array] = [values] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return np.concatenate(parts)


def calibrate_features(
    built: Built,
    batches: int,
    *,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> list[str]:
    """Make numbers of the model's bounds that are percentiles; what they have become, in lines.

    Of the fused feature's |elements|; of samples' norms of the gradient from the fusion into each encoder, over those
    that have the modality. Percentiles are off while this is measured, bounds that are numbers are in force. A
    modality into which no gradient goes stays without a bound.

    Raises:
        UserError: what was measured gives no bound.
    """
    feature_clip, gradient_clip = built.module.model.bounds
    wanted: dict[str, Bound] = {"model.feature_clip": feature_clip}
    wanted |= {f"model.gradient_clip of {name}": each for name, each in gradient_clip.items()}
    wanted = {key: each for key, each in wanted.items() if isinstance(each, Calibrated)}
    if not wanted:
        return []
    watch = _Collector(wanted)
    run_batches(built, batches, seed=seed, device=device, rank=rank, world=world, watch=watch)
    lines: list[str] = []
    for key, bound in wanted.items():
        assert bound.percentile is not None
        sizes = of_all_ranks(watch.sizes(key))
        if sizes.size == 0:
            lines.append(f"{key}: off, no gradient goes there")
            continue
        bound.value = bound_at(bound.percentile, sizes, key)
        spread = zip(QUANTILES, np.percentile(sizes, QUANTILES), strict=True)
        said = ", ".join(f"p{q} {value:.4g}" for q, value in spread)
        lines.append(f"{key}: p{bound.percentile:g} is {bound.value:.6g} ({said})")
    return lines


def calibrate_clip(
    built: Built,
    batches: int,
    *,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> list[str]:
    """Make numbers of clip thresholds that are percentiles of gradient norms; what they have become, in lines.

    After ``calibrate_features``, whose bounds shape the gradients.

    Raises:
        UserError: what was measured gives no bound.
    """
    clipper = built.module.pipeline.clipper
    if not clipper.calibrates:
        return []
    seen: list[list[Tensor]] = []

    def measure(module: MultimodalModule) -> None:
        seen.append(module.pipeline.clipper.observe())

    run_batches(built, batches, seed=seed, device=device, rank=rank, world=world, measure=measure)
    lines: list[str] = []
    for scope, found in clipper.calibrate(seen).items():
        key = f"clip.scopes.{scope}.threshold" if scope else "clip.threshold"
        percentile = clipper.laws[scope].percentile
        assert percentile is not None
        parts = [f"{name} {value:.4g}".strip() for name, value in found.items()]
        if len(parts) > MOST_UNITS:
            low, high = min(found.values()), max(found.values())
            parts = [f"{low:.4g} to {high:.4g} for {len(found)} units"]
        lines.append(f"{key}: p{percentile:g} of {len(seen)} steps is {', '.join(parts)}")
    return lines


class _Collector(Watch):
    """Keeps all that these bounds are percentiles of."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self.seen: dict[str, list[Array]] = {key: [] for key in wanted}

    def sizes(self, key: str) -> Array:
        return np.concatenate([np.empty(0), *self.seen[key]])

    def features(self, fused: Tensor) -> None:
        if "model.feature_clip" in self.seen:
            self._keep("model.feature_clip", fused.detach().abs())

    def gradients(self, modality: str, there: Tensor) -> Measure | None:
        key = f"model.gradient_clip of {modality}"
        if key not in self.seen:
            return None
        present = there.any(dim=1)

        def measure(norm: Tensor, shortened: Tensor) -> None:  # noqa: ARG001 (contract)
            self._keep(key, norm[present])

        return measure

    def _keep(self, key: str, sizes: Tensor) -> None:
        self.seen[key].append(sizes.double().cpu().numpy().ravel())


def _average(module: MultimodalModule, world: int) -> None:
    """Gradients as DDP makes them; a parameter that one rank has none for counts as 0 there."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad.div_(world))


def _meet(device: torch.device) -> None:
    """Ranks that torchrun has started find each other; Lightning takes over the group that it finds."""
    if dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


@contextlib.contextmanager
def _apart(seed: int, device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Random numbers of one's own, and kernels as the training's; all is afterwards what it was."""
    devices = [device] if device.type == "cuda" else []
    others = np.random.get_state(), random.getstate()  # noqa: NPY002 (the global one)
    was = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning sets it
    torch.use_deterministic_algorithms(deterministic)
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(others[0])  # noqa: NPY002
        random.setstate(others[1])
        torch.use_deterministic_algorithms(was)
