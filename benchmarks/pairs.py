"""The frame of every benchmark: cases timed in turn, round after round, compared pair by pair.

Single timings drift with the machine's load; the ratio of two neighbours in one round hardly does. So each round runs every case once, in an order
that alternates, and what is reported is the median ratio to the first case with its smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Case = Callable[[], float]  # runs once and returns its cost, in the unit of the benchmark


def parser(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=rounds, help="times each case is run")
    made.add_argument("--json", type=Path, metavar="FILE", help="write {case: {median, min, max}}")
    return made


def run(cases: Mapping[str, Case], *, rounds: int) -> dict[str, list[float]]:
    """{case: its costs}, one per round; the order turns round from one round to the next."""
    costs: dict[str, list[float]] = {name: [] for name in cases}
    for k in range(rounds):
        names = list(cases)
        for name in names if k % 2 == 0 else names[::-1]:
            costs[name].append(cases[name]())
    return costs


def report(
    costs: Mapping[str, list[float]], *, unit: str, baselines: Mapping[str, str], file: Path | None
) -> str:
    """A table: median, spread, and the ratio pair by pair to each case's baseline; also as JSON.

    Args:
        costs: from ``run``.
        unit: of the costs.
        baselines: {case: the case that it is compared with}.
        file: where ``--json`` goes.
    """
    lines = [f"{machine()}; {len(next(iter(costs.values())))} rounds, cases in turn"]
    lines.append(f"{'case':34} {'median':>9} {'min':>9} {'max':>9}  {unit:10} ratio to baseline")
    summary = summarise(costs, baselines.items())
    for name in costs:
        line = f"{name:34} " + " ".join(f"{v:9.3f}" for v in summary[name].values())
        base = baselines.get(name)
        if base is not None:
            line += f"  {'':10} {shown(summary[over(name, base)])} x {base}"
        lines.append(line)
    write(summary, file)
    return "\n".join(lines)


def summarise(
    costs: Mapping[str, list[float]], compared: Iterable[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """The spread of each case, and of the ratios pair by pair of those cases that are compared with another."""
    found = {name: spread(values) for name, values in costs.items()}
    for name, base in compared:
        ratios = [a / b for a, b in zip(costs[name], costs[base], strict=True)]
        found[over(name, base)] = spread(ratios)
    return found


def over(name: str, base: str) -> str:
    """What the ratio of two cases is called."""
    return f"{name} over {base}"


def shown(found: Mapping[str, float]) -> str:
    """Median and spread of ratios in a table."""
    return f"{found['median']:.3f} [{found['min']:.3f} to {found['max']:.3f}]"


def write(summary: Mapping[str, Mapping[str, float]], file: Path | None) -> None:
    """What ``--json`` asked for, if it did."""
    if file is not None:
        file.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def spread(values: list[float]) -> dict[str, float]:
    """{median, min, max}."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> str:
    """What it ran on, in one line."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return (
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
