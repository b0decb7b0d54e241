"""What ``mmrun train`` says at the end: how it went, where it is, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrun.compare.command import variant
from mmrun.errors import printable
from mmrun.exits import program, shown


def summary(record: Mapping[str, Any]) -> str:
    """The closing lines of a run.

    Args:
        record: content of run.json, with the run's ``directory`` added.
    """
    lines = [f"{'status':8} {_status(record)}"]
    scores = (("test", "test", _best(record)), ("last", "test_last", "at the last step"))
    for label, key, which in scores:
        values: dict[str, Any] = record.get(key) or {}
        if values:
            words = "  ".join(f"{name.split('/', 1)[1]} {_short(v)}" for name, v in values.items())
            lines.append(f"{label:8} {words}  ({which})")
    clip: dict[str, Any] = record.get("clip") or {}
    verdict = clip.get("verdict")
    if verdict:
        lines.append(f"{'clip':8} {verdict}")
    features: dict[str, Any] = record.get("features") or {}
    if features:
        lines.append(f"{'features':8} {features['verdict']}")
    if record.get("error"):
        lines.append(f"{'error':8} {record['error']}")
    directory = shown(Path(str(record.get("directory", ""))))
    lines.append(f"{'run':8} {directory}")
    lines.append(f"{'next':8} {_next(record, directory)}")
    return "\n".join(map(printable, lines))


def _status(record: Mapping[str, Any]) -> str:
    words = [str(record["status"])]
    if record.get("stability") not in (None, "ok", record["status"]):
        words.append(f"({record['stability']})")
    if record.get("stopped_by") not in (None, record["status"]):
        words.append(f"by {record['stopped_by']}")
    if record.get("steps") is not None:
        words.append(f"after {record['steps']} steps in {record.get('seconds') or 0:.1f} s")
    return " ".join(words)


def _best(record: Mapping[str, Any]) -> str:
    monitor: dict[str, Any] = record.get("monitor") or {}
    if monitor.get("best_step") is None:
        return "best"
    return f"best by {monitor['metric']}, step {monitor['best_step']}"


def _next(record: Mapping[str, Any], directory: str) -> str:
    """One command that answers the question a person has now."""
    choices: dict[str, str] = record.get("choices") or {}
    if record.get("status") in ("killed", "failed"):
        return f"{program()} resume {shlex.quote(directory)}"
    if record.get("status") == "diverged" or record.get("stability") == "collapsed":
        if choices.get("clip") == "none":
            return variant(record, "clip=0.5", without=["clip"]) + "    # does clipping help?"
        return variant(record, "clip=none", without=["clip"]) + "    # is it the clipping?"
    if choices.get("clip") != "none":
        return (
            variant(record, "clip=none", without=["clip"])
            + "    # what would it be without clipping?"
        )
    return f"{program()} show {shlex.quote(directory)}"


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
