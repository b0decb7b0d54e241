"""What would a command train? Its points, their choices and steps; nothing is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrun.compose.space import Space
from mmrun.errors import UserError, printable
from mmrun.exits import shown
from mmrun.launch import report
from mmrun.launch.plan import TO_DO, plan
from mmrun.spec import Point, Sweep
from mmrun.trust import targets
from mmrun.user_code import add_to_path


def lines(sweep: Sweep) -> Iterator[str]:
    """The text, line by line. Datasets are built to count the steps; that is what takes the time."""
    first = sweep.points[0]
    directory = Path(first.config["outputs"]).absolute() / sweep.name
    space = sweep if isinstance(sweep, Space) else None
    planned = plan(directory, sweep.points, sweep.rerun) if sweep.name and not space else []
    if planned:
        yield from report.opening(directory, planned, sweep.rerun, sweep.repeated, sweep.idle)
    if space:
        yield from _opening(directory, space)
    spanned = {key.partition(".")[0] for key in space.dimensions} if space else set[str]()
    common = {
        group: option
        for group, option in first.choices.items()
        if group not in spanned  # clip=0.3162 is the middle of an interval, and none's choice
        and all(point.choices.get(group) == option for point in sweep.points)
    }
    yield printable(f"{'choices':8} " + " ".join(f"{g}={o}" for g, o in common.items()))
    steps = _Steps()
    total, unknown = 0, 0
    if sweep.name:
        yield ""
    for k, point in enumerate(sweep.points):
        count = steps.of(point)
        todo = not planned or planned[k].action in TO_DO
        if isinstance(count, int) and todo:
            total += count
        unknown += isinstance(count, str)
        action = f"{planned[k].action:7}" if planned else ""
        many = f"{count:>7} steps" if isinstance(count, int) else "      ? steps"
        reason = "" if isinstance(count, int) else f"  ({count})"
        yield printable(f"{action} {many}  {point.name}{reason}")
    if space:
        yield "\nno model was built, and nothing was made"
        return
    but = "" if not unknown else f", but for {unknown} of {len(sweep.points)} that cannot be built"
    yield f"\n{total} steps to train at most{but}; no model was built, and nothing was made"


def _opening(directory: Path, space: Space) -> Iterator[str]:
    """Of a sweep whose points are chosen on the way one can only say how many, and show some that might be."""
    seeds = len(space.seeds)
    each = f", {seeds} points each" if seeds > 1 else ""
    yield f"{'sweep':8} {shown(directory)}"
    yield f"{'trials':8} {space.sweeper.get('trials', '?')} in all{each}, chosen on the way; such as those below"
    for key, values in space.axes.items():
        yield printable(f"{'':8} {key}={','.join(values)}")


class _Steps:
    """Optimizer steps of points; points with the same data share one look at it."""

    def __init__(self) -> None:
        self._sizes: dict[str, Any] = {}

    def of(self, point: Point) -> int | str:
        """How many, at most; or why not."""
        from mmrun import build  # torch

        config = point.config
        key = json.dumps(config["dataset"], sort_keys=True, default=str)
        try:
            if key not in self._sizes:
                add_to_path(point.config_dirs)
                build.check_targets(config, targets(config))
                self._sizes[key] = build.dataset(config["dataset"], config["data_seed"]).spec
            return build.planned_steps(config, self._sizes[key])
        except UserError as error:
            return str(error)
