"""What is left to do: points against what their folders say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmrun import __version__
from mmrun.runs.layout import Paths, point_directory
from mmrun.runs.provenance import commit
from mmrun.runs.reader import list_runs, read
from mmrun.spec import Point, Rerun

DONE = ("finished", "diverged", "pruned")  # results; a diverged run is one
RESUMABLE = ("killed", "cancelled")  # go on from their last checkpoint where they have one
Action = Literal["skip", "wait", "train", "resume"]
TO_DO = ("train", "resume")
# What is kept of records: a sweep has thousands of them, of 25 kB each.
KEPT = (
    *("id", "name", "status", "stability", "stopped_by", "error", "monitor", "metrics"),
    *("steps", "epochs", "seconds", "started", "host", "resumed"),
)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A point, its folder, and what is to happen to it.

    Args:
        point: what to train.
        directory: where it is, or will be.
        action: ``skip`` what is done, ``wait`` for what another process trains, else ``train`` or ``resume``.
        record: ``slim`` of its run.json; None where it has no folder yet.
        stale: whether it was made by another version or commit of mmrun.
    """

    point: Point
    directory: Path
    action: Action
    record: Mapping[str, Any] | None = None
    stale: bool = False


class Found(NamedTuple):
    """A run directory of a sweep: its record, and the version and commit of mmrun that made it."""

    directory: Path
    record: dict[str, Any]
    made_by: tuple[Any, Any]


def slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a record that a sweep speaks of."""
    return {key: record[key] for key in KEPT}


def action_for(record: Mapping[str, Any], directory: Path) -> Action:
    """What is to happen to a point whose record this is."""
    status = record["status"]
    if status == "running":
        return "wait"
    if status in DONE:
        return "skip"
    return "resume" if status in RESUMABLE and Paths(directory).last.is_file() else "train"


def present(sweep: Path) -> dict[str, list[Found]]:
    """{id: its copies} of what lies in a sweep's folder."""
    found: dict[str, list[Found]] = {}
    for run in list_runs(sweep) if sweep.is_dir() else []:
        each = found_at(run)
        found.setdefault(each.record["id"], []).append(each)
    return found


def found_at(run: Path) -> Found:
    """What lies in a run directory."""
    record = read(run)
    made_by = record["versions"].get("mmrun"), record["git"].get("commit")
    return Found(run, slim(record), made_by)


def plan(
    sweep: Path,
    points: Iterable[Point],
    rerun: Rerun,
    found: Mapping[str, Sequence[Found]] | None = None,
) -> list[Planned]:
    """What to do with each point; folders are found by id, whatever they are called. Touches nothing.

    Args:
        sweep: its folder.
        points: in their order.
        rerun: which finished ones are made again.
        found: ``present`` of the folder, where it is known already.
    """
    if found is None:
        found = present(sweep)
    here = __version__, commit()["commit"]
    planned: list[Planned] = []
    for point in points:
        directory = point_directory(sweep, point)
        copies = found.get(point.id, ())
        best = max(
            copies, key=lambda each: rank(each.directory, each.record, directory), default=None
        )
        planned.append(_planned(point, directory, best, rerun, here))
    return planned


def rank(run: Path, record: Mapping[str, Any], directory: Path) -> tuple[bool, bool]:
    """Of copies of a point the one that counts: a result, else the one that has the point's own name."""
    return record["status"] in DONE, run == directory


def _planned(
    point: Point,
    directory: Path,
    found: Found | None,
    rerun: Rerun,
    here: tuple[Any, Any],
) -> Planned:
    if found is None:
        return Planned(point=point, directory=directory, action="train")
    directory, record, made_by = found
    status = record["status"]
    stale = status in DONE and made_by != here
    action = action_for(record, directory)
    if status in DONE and (rerun == "true" or (rerun == "stale" and stale)):
        action = "train"
    return Planned(point=point, directory=directory, action=action, record=record, stale=stale)
