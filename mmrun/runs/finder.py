"""What a user types for a run or a sweep -> its directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmrun.errors import UserError, nearest
from mmrun.runs.layout import RECORD, SWEEP_RECORD
from mmrun.runs.reader import list_runs, read
from mmrun.runs.record import UNREADABLE

LAST = "last"
_SHOWN = 5


def outputs() -> Path:
    """The root of all runs, where a command names no other."""
    return Path(os.environ.get("MMRUN_OUTPUTS", "outputs"))


def find(text: str, outputs: Path) -> Path:
    """The run that ``text`` names: a path, a name or unique id prefix below outputs, or ``last``.

    Args:
        text: what the user gave; ``last`` is the run that started last.
        outputs: the root of all runs.

    Raises:
        UserError: nothing or more than one run answers to it; nearest names are listed.
    """
    path = Path(text).expanduser()
    if text != LAST:
        for candidate in (path, outputs / text):
            if candidate.name == RECORD and candidate.is_file():
                return candidate.parent
            if (candidate / RECORD).is_file():
                return candidate
    runs = list_runs(outputs)
    if not runs:
        raise UserError("there are no runs yet", given=outputs, remedy="Make one: mmrun train")
    if text == LAST:
        return _newest(runs, outputs)
    records = {run: read(run) for run in runs}
    for matches in (
        [run for run in runs if run.name == text],
        [run for run, record in records.items() if record["name"] == text],
        [run for run, record in records.items() if text and record["id"].startswith(text)],
        [run for run in runs if text and run.name.startswith(text)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UserError(
                f"{len(matches)} runs answer to that",
                given=text,
                remedy=f"Give the path of one: {_listed(matches, outputs)}.",
            )
    for candidate in (path, outputs / text):
        if (candidate / SWEEP_RECORD).is_file():
            points = list_runs(candidate)
            raise UserError(
                f"that is a sweep of {len(points)} points, not a run",
                given=text,
                remedy=f"Name one of them: {_listed(points, outputs)}." if points else "",
            )
    names = {run.name for run in runs} | {record["id"] for record in records.values()} - {""}
    names |= {found.parent.name for found in outputs.glob(f"*/{SWEEP_RECORD}")}
    raise UserError("no such run", given=text, remedy=nearest(text, names, limit=_SHOWN))


def find_sweep(text: str, outputs: Path) -> Path:
    """The sweep that ``text`` names: a path, a name or unique start of one, or ``last``.

    Raises:
        UserError: nothing or more than one sweep answers to it; nearest names are listed.
    """
    if text != LAST:
        for candidate in (Path(text).expanduser(), outputs / text):
            if (candidate / SWEEP_RECORD).is_file():
                return candidate
            if (candidate / RECORD).is_file():
                of = candidate.parent / SWEEP_RECORD
                raise UserError(
                    "that is a run, not a sweep",
                    given=text,
                    remedy=f"It belongs to {of.parent}." if of.is_file() else "",
                )
    sweeps = [found.parent for found in sorted(outputs.glob(f"*/{SWEEP_RECORD}"))]
    if not sweeps:
        raise UserError("there are no sweeps yet", given=outputs, remedy="Make one: mmrun train -m")
    if text == LAST:
        return max(sweeps, key=lambda sweep: (sweep / SWEEP_RECORD).stat().st_mtime)
    matches = [sweep for sweep in sweeps if text and sweep.name.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"{len(matches)} sweeps answer to that",
            given=text,
            remedy=f"Give one: {_listed(matches, outputs)}.",
        )
    raise UserError(
        "no such sweep",
        given=text,
        remedy=nearest(text, [sweep.name for sweep in sweeps], limit=_SHOWN),
    )


def find_tree(text: str, outputs: Path) -> Path:
    """A run, a sweep or a folder of runs: what ``text`` names, by path, name or unique start of one.

    ``last`` is the newest run, or the sweep that it belongs to.

    Raises:
        UserError: nothing or more than one answers to it, or the folder holds no run.
    """
    if text == LAST:
        return _last_tree(outputs)
    path = Path(text).expanduser()
    for candidate in (path, outputs / text):
        if candidate.is_dir() and ((candidate / SWEEP_RECORD).is_file() or list_runs(candidate)):
            return candidate
    if path.is_dir():
        raise UserError(
            "there are no runs here", given=text, remedy="Name a run, a sweep or a folder of runs."
        )
    sweeps = [found.parent for found in sorted(outputs.glob(f"*/{SWEEP_RECORD}"))]
    named = [sweep for sweep in sweeps if text and sweep.name.startswith(text)]
    # A run may begin with the same letters; then the whole name decides, and find says what there is.
    if len(named) == 1 and not any(run.name.startswith(text) for run in list_runs(outputs)):
        return named[0]
    return find(text, outputs)


def _last_tree(outputs: Path) -> Path:
    sweeps = [found.parent for found in outputs.glob(f"*/{SWEEP_RECORD}")]
    made = {sweep: (sweep / SWEEP_RECORD).stat().st_mtime for sweep in sweeps}
    sweep = max(made, key=made.__getitem__, default=None)
    try:
        run = find(LAST, outputs)
    except UserError:  # none has started: a queued sweep is the newest there is
        if sweep is None:
            raise
        return sweep
    if sweep is not None and made[sweep] > (run / RECORD).stat().st_mtime:
        return sweep
    return run.parent if (run.parent / SWEEP_RECORD).is_file() else run


def _newest(runs: list[Path], outputs: Path) -> Path:
    def key(run: Path) -> tuple[str, str]:
        record: dict[str, Any] = read(run)
        return ("" if record["status"] == UNREADABLE else record["started"] or "", run.name)

    started, newest = max((key(run), run) for run in runs)
    if not started[0]:
        raise UserError(
            "no run has started yet", given=LAST, remedy=f"Queued: {_listed(runs, outputs)}."
        )
    return newest


def _listed(paths: list[Path], outputs: Path) -> str:
    shown = [str(p.relative_to(outputs) if p.is_relative_to(outputs) else p) for p in paths]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
