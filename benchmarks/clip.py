"""Every clip law, telemetry and all, against torch.nn.utils.clip_grad_norm_ on 1M, 10M and 100M parameters; and the memory's bandwidth."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import pairs
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmrun import build, compose
from mmrun.clip.adaptive import Adaptive
from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.stats import Stats
from mmrun.options import conf_dir

SCOPES = ("image", "text", "audio", "fusion", "objective")
# {size: (width, layers per scope)}: a layer is a matrix [width, width] and a vector [width], as a Linear has them.
SIZES = {"10K": (44, 1), "1M": (130, 13), "10M": (512, 8), "100M": (2048, 5)}
TORCH_NORM, TORCH_VALUE = "clip_grad_norm_", "clip_grad_value_"
BARE = "bare clamp_"  # what value could cost at best
SPREAD = 0.1  # standard deviation of an element: far above the bounds of norm and value, which so engage at each step
STEPS = 50  # whose statistics are worked out together at a log point

Named = dict[str, dict[str, nn.Parameter]]
Step = Callable[[], object]


class Target(NamedTuple):
    """The ratio to another case that a case is to stay below."""

    base: str
    most: float


def main(words: Sequence[str] | None = None) -> None:
    """Time the cases and print the table."""
    given = arguments(words)
    laws = given.only or options()
    summary: dict[str, dict[str, float]] = {}
    print(f"{pairs.machine()}; {given.rounds} rounds, cases in turn; ms of {clock()} per step")  # noqa: T201 (its output)
    print(HEAD)  # noqa: T201
    for size in given.sizes:
        bound = parameters(size)
        for group in chain([bandwidth(bound)], groups(laws, bound)):
            calls = 5 if given.quick else 20
            found = measured(group, bound, rounds=given.rounds, calls=calls, size=size)
            summary |= {name: each for name, each in found.items() if name not in summary}
            for line in lines(group, found, size):
                print(line, flush=True)  # noqa: T201
            gc.collect()  # what a law remembers may be as large as the gradient
    pairs.write(summary, given.json)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = pairs.parser(f"{__doc__}\n\n{NOTES}", rounds=9)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1M", "10M", "100M"])
    parser.add_argument("--only", nargs="+", metavar="LAW", help="options of conf/clip")
    parser.add_argument("--quick", action="store_true", help="3 rounds of few calls, up to 10M")
    given = parser.parse_args(words)
    if given.quick:
        given.rounds = min(given.rounds, 3)
        given.sizes = [size for size in given.sizes if size != "100M"]
    return given


NOTES = """Parameters lie in 5 scopes: 1M are 130 tensors, 10M are 80, 100M are 50. Laws have the settings of conf/clip.
Gradients are filled afresh before each call, outside of the clock, and are N(0, 0.1^2); on a CPU the clock is the CPU
time of the process, on one thread; on a GPU it runs from the call to the end of the last kernel.
"touched": what the operations read and write, in units B of the gradient's size: every argument counted once per
operation, and every result, whether they come from memory or from a cache. "GB/s" is touched over time, to be held
against the bandwidth of the size's first lines, on one tensor of that size."""


# What is timed


class Case(NamedTuple):
    """One thing to time.

    Args:
        step: runs once.
        target: what the case is to reach.
        repeats: how many training steps one run covers.
    """

    step: Step
    target: Target | None = None
    repeats: int = 1


def options() -> list[str]:
    """Every law of conf/clip; norm first, with which others are compared, so that its figures are those of its own turn."""
    found = [path.stem for path in (conf_dir() / "clip").glob("*.yaml")]
    return sorted(found, key=lambda option: (option != "norm", option))


def bandwidth(bound: Named) -> dict[str, Case]:
    """What the memory gives, on one tensor of the gradient's size."""
    flat = [p for named in bound.values() for p in named.values()]
    one = torch.empty(sum(p.numel() for p in flat), device=flat[0].device).fill_(0.5)
    other = torch.empty_like(one)
    return {
        "bandwidth: mul_": Case(lambda: one.mul_(1.0)),
        "bandwidth: copy_": Case(lambda: other.copy_(one)),
        "bandwidth: sum": Case(one.sum),
        "bandwidth: clamp_": Case(lambda: one.clamp_(-0.1, 0.1)),
    }


def groups(laws: Sequence[str], bound: Named) -> Iterator[dict[str, Case]]:
    """{case: Case}, of cases that run in turn; the first is what the others are compared with."""
    flat = [p for named in bound.values() for p in named.values()]

    def torch_norm() -> None:
        nn.utils.clip_grad_norm_(flat, 1.0)

    def torch_value() -> None:
        nn.utils.clip_grad_value_(flat, 0.1)

    def bare_clamp() -> None:
        for p in flat:
            assert p.grad is not None
            p.grad.clamp_(-0.1, 0.1)

    base = {TORCH_NORM: Case(torch_norm)}
    for option in laws:
        law = clipper(option).law
        law.bind(bound)
        group = {**base, option: Case(law.apply, target(option, law))}
        if option == "value":
            group |= {TORCH_VALUE: Case(torch_value), BARE: Case(bare_clamp)}
        elif group[option].target and option != "norm":
            norm = clipper("norm").law
            norm.bind(bound)
            group["norm"] = Case(norm.apply)
        if option == "norm":
            engine = clipper("norm")
            engine.bind(bound)
            group["engine/norm"] = Case(engine.apply, target("norm", law))
        yield group
        if option in ("norm", "value"):
            refill(bound, fresh(bound))
            steps = [law.apply()] * STEPS
            yield {**base, f"telemetry/{option}": Case(lambda s=steps: logged(s), repeats=STEPS)}


def clipper(option: str) -> Clipper:
    """The law of conf/clip/<option>.yaml with the engine around it, as a training has it."""
    return build.clip(_config(option), total_steps=10_000)


@cache
def _config(option: str) -> dict[str, Any]:
    return compose.point([f"clip={option}"]).config["clip"]


def target(option: str, law: Law) -> Target | None:
    """What a law is to reach."""
    if option == "norm":
        return Target(TORCH_NORM, 1.05)
    if option == "value":
        return Target(TORCH_VALUE, 0.6)
    if option == "agc":
        return Target("norm", 2.5)
    return Target("norm", 1.1) if isinstance(law, Adaptive) else None


def logged(steps: list[Stats]) -> None:
    """What a log point makes of the statistics of its steps."""
    Stats.stack(steps).by_scope()


def parameters(size: str) -> Named:
    """Parameters in scopes, with gradients."""
    width, layers = SIZES[size]
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = {"weight": (width, width), "bias": (width,)}
    bound: Named = {scope: {} for scope in SCOPES}
    for named in bound.values():
        for k in range(layers):
            for name, shape in shapes.items():
                p = nn.Parameter(0.02 * torch.randn(shape, device=device))
                p.grad = SPREAD * torch.randn(shape, device=device)
                named[f"{k}.{name}"] = p
    return bound


# Timing


def measured(
    group: Mapping[str, Case], bound: Named, *, rounds: int, calls: int, size: str
) -> dict[str, dict[str, float]]:
    """{case: spread, GB/s and B}, {case over another: spread}; names with the size."""
    kept = fresh(bound)
    n = sum(g.numel() for g in kept)
    times = max(1, min(calls, 60_000_000 // n))
    cases: dict[str, pairs.Case] = {}
    touched: dict[str, float] = {}
    for name, case in group.items():
        touched[name] = counted(case.step) / case.repeats  # warms up as well
        cases[name] = lambda case=case: timed(case.step, bound, kept) / case.repeats
        cases[name]()
    # Calls alternate one by one, and a round's cost is the median of its calls: a neighbour's burst hits single ones.
    every = pairs.run(cases, rounds=rounds * times)
    costs = {
        name: [statistics.median(its[i : i + times]) for i in range(0, len(its), times)]
        for name, its in every.items()
    }
    first = next(iter(group))
    compared = {(name, first) for name in group if name != first}
    compared |= {(name, case.target.base) for name, case in group.items() if case.target}
    found = {
        pairs.over(f"{a}/{size}", f"{b}/{size}"): each
        for a, b in compared
        for each in [pairs.summarise(costs, [(a, b)])[pairs.over(a, b)]]
    }
    for name, values in costs.items():
        its = pairs.spread(values)
        rate = 1e-6 * touched[name] / its["median"]
        found[f"{name}/{size}"] = {**its, "touched": touched[name] / (4 * n), "GB/s": rate}
    refill(bound, kept)
    return found


def timed(step: Step, bound: Named, kept: list[Tensor]) -> float:
    """Ms of one call, on fresh gradients."""
    refill(bound, kept)
    if not torch.cuda.is_available():
        began = time.process_time()
        step()
        return 1e3 * (time.process_time() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()  # an empty queue: what the host takes to launch counts
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def clock() -> str:
    """What is timed."""
    return "GPU time" if torch.cuda.is_available() else "CPU time"


def fresh(bound: Named) -> list[Tensor]:
    """A copy of the gradients."""
    grads = [p.grad for named in bound.values() for p in named.values()]
    return [g.clone() for g in grads if g is not None]


@torch.no_grad()
def refill(bound: Named, kept: list[Tensor]) -> None:
    """The gradients as they were."""
    flat = [p for named in bound.values() for p in named.values()]
    for p, g in zip(flat, kept, strict=True):
        assert p.grad is not None
        p.grad.copy_(g)


def counted(step: Step) -> float:
    """Bytes that the operations of a step read and write."""
    with Traffic() as traffic:
        step()
    return float(traffic.bytes)


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count."""
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            return out  # a view
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        named |= kwargs or {}
        for argument in func._schema.arguments:
            write = argument.alias_info is not None and argument.alias_info.is_write
            only = write and func._schema.name in WRITE_ONLY
            self.bytes += size_of(named.get(argument.name)) * (1 + (write and not only))
        if not any(r.alias_info is not None for r in returns) and returns:
            self.bytes += size_of(out)
        return out


WRITE_ONLY = {"aten::copy_", "aten::fill_", "aten::zero_", "aten::normal_"}


def size_of(value: Any) -> int:
    """Bytes of a tensor, or of all tensors in a list."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


# Telling

HEAD = f"{'case':21} {'ms [min to max]':23} {'x clip_grad_norm_':20} {'touched':>7} {'GB/s':>5}  target"


def lines(
    group: Mapping[str, Case], found: Mapping[str, Mapping[str, float]], size: str
) -> Iterator[str]:
    """The table's lines of a group of cases."""
    first = next(iter(group))
    known = () if "engine/norm" in group or first != TORCH_NORM else (first, "norm")
    for name, case in group.items():
        if name in known:  # has its line in the group of norm
            continue
        its = found[f"{name}/{size}"]
        ratio = found.get(pairs.over(f"{name}/{size}", f"{first}/{size}"))
        shown = spread(ratio, "{:.2f}") if ratio and first == TORCH_NORM else ""
        line = f"{name + '/' + size:21} {spread(its, '{:#.3g}'):23} {shown:20}"
        line += f" {its['touched']:5.1f} B {its['GB/s']:5.1f}"
        if case.target is not None:
            base, most = case.target
            ratio = found[pairs.over(f"{name}/{size}", f"{base}/{size}")]
            line += f"  {ratio['median']:.2f} of {most:g} {base.removeprefix('clip_grad_')}"
        yield line.rstrip()


def spread(found: Mapping[str, float], form: str) -> str:
    """Median and spread in a table."""
    low, middle, high = (form.format(found[key]) for key in ("min", "median", "max"))
    return f"{middle} [{low} to {high}]".replace(". ", " ").replace(".]", "]")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
