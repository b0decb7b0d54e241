"""What was this run, what came of it, and how do I make it again? The text of ``mmrun show RUN``."""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mmrun.compare.command import command, resumed
from mmrun.errors import printable
from mmrun.exits import program
from mmrun.runs import features, verdict
from mmrun.runs.layout import Paths
from mmrun.runs.reader import read
from mmrun.runs.record import UNREADABLE
from mmrun.runs.table import read_columns
from mmrun.spec import law_of

WIDTH = 100
_STYLES = {"finished": "green", "running": "cyan", "queued": "dim", "pruned": "yellow"}
_UNFINISHED = ("queued", "failed", "killed", "cancelled")
_NONE = "-"


def show(directory: Path, *, width: int = WIDTH, color: bool = False) -> str:
    """All there is to say about one run directory, in whatever state it is.

    Args:
        directory: a run directory.
        width: columns of the terminal.
        color: whether to write terminal colours.
    """
    record = read(directory)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
        soft_wrap=False,
    )
    if record["status"] == UNREADABLE:
        _print_unreadable(console, directory, record)
        return _trimmed(out)
    console.print(_text(record["name"] or directory.name, "bold"))
    console.print(_facts(directory, record))
    scores = _scores(record)
    if scores is not None:
        console.print(Padding(scores, (1, 0, 0, 0)))
    clip = clip_of(directory, record)
    scopes = _scope_table(clip)
    if scopes is not None:
        console.print(Padding(scopes, (1, 0, 0, 0)))
    # Commands go out unwrapped, so that they can be copied.
    out.write(f"\nmake it again:  {printable(command(record))}\n")
    hint = _resume_hint(directory, record)
    if hint:
        out.write(f"{printable(hint)}\n")
    return _trimmed(out)


def clip_of(directory: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The clip block of a run; made from gradients.csv where the run died before it wrote one."""
    block = cast("dict[str, Any]", record["clip"])
    if block.get("verdict"):
        return block
    columns = read_columns(Paths(directory).gradients)
    settings = _mapping(record["config"].get("clip"))
    algorithm = block.get("algorithm") or law_of(str(settings.get("_target_", "")))
    if not algorithm or not columns or not len(next(iter(columns.values()))):
        return block
    threshold = settings.get("threshold")
    optimizer = _mapping(record["config"].get("optimizer")).get("_target_", "")
    return verdict.clip_block(
        columns,
        algorithm=algorithm,
        threshold=threshold if isinstance(threshold, (int, float, str)) else None,
        per=str(settings.get("per", "global")),
        optimizer=str(optimizer),
        settings=settings,
    )


def features_of(directory: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What feature clipping did; counted in gradients.csv where the run died before it wrote that down."""
    block = cast("dict[str, Any]", record["features"])
    if not block or record["status"] in ("finished", "diverged"):
        return block
    scopes = _mapping(_mapping(block.get("gradient_clip")).get("scopes"))
    return features.feature_block(
        _mapping(record["config"].get("model")),
        _mapping(block.get("feature_clip")).get("bound", math.inf),
        {name: _mapping(values).get("bound", math.inf) for name, values in scopes.items()},
        features.counted(read_columns(Paths(directory).gradients)),
    )


def _text(value: object, style: str = "") -> Text:
    """A value as it may go to a terminal: a run.json may come from anywhere."""
    return Text(printable(str(value)), style=style)


def _trimmed(out: io.StringIO) -> str:
    """What was printed, without the blanks that rich pads cells with."""
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _print_unreadable(console: Console, directory: Path, record: Mapping[str, Any]) -> None:
    console.print(_text(directory, "bold"))
    console.print(_text(f"unreadable: {record['error']}", "red"))
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return
    console.print(_text(f"in it: {', '.join(names) or 'nothing'}"))


def _facts(directory: Path, record: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")

    def add(label: str, value: object, style: str = "") -> None:
        if value not in (None, "", _NONE):
            grid.add_row(_text(label), _text(value, style))

    status = record["status"]
    stability, monitor = record["stability"], _mapping(record["monitor"])
    stopped = f", stopped by {record['stopped_by']}" if record["stopped_by"] else ""
    add("status", status + stopped, _STYLES.get(status, "red"))
    add("error", record["error"], "red")
    add("stability", stability, "" if stability == "ok" else "yellow")
    add("verdict", clip_of(directory, record).get("verdict"), "bold")
    add("features", features_of(directory, record).get("verdict"))
    if monitor.get("metric"):
        add("monitor", f"{monitor['metric']} ({monitor.get('mode')}) {_say(monitor.get('value'))}")
    choices = (f"{group}={option}" for group, option in record["choices"].items())
    add("choices", " ".join(choices))
    add("resumed", " ".join(resumed(record).values()))
    add("seed", _seeds(record))
    add("trained", _effort(record))
    add("when", _when(record))
    add("where", " ".join(str(part) for part in (record["host"], record["device"]) if part))
    add("code", _code(directory, record))
    add("sweep", record["sweep"])
    add("id", record["id"])
    wandb = _mapping(record["wandb"])
    add("W&B", wandb.get("url") or (wandb.get("id") and f"{wandb['id']} ({wandb.get('mode')})"))
    add("directory", directory)
    add("files", " ".join(_files(directory)))
    return grid


def _scores(record: Mapping[str, Any]) -> Table | None:
    """Metrics by checkpoint: rows are metric names without their prefix."""
    validation = {
        name: _mapping(value).get("last")
        for name, value in record["metrics"].items()
        if name.startswith("val/")
    }
    columns = {
        "test (best)": _bare(record["test"]),
        "test (last)": _bare(record["test_last"]),
        "val (last)": _bare(validation),
        "train": _bare(record["train_eval"]),
    }
    columns = {title: values for title, values in columns.items() if values}
    if not columns:
        return None
    table = _table("metric", columns)
    for name in sorted({name for values in columns.values() for name in values}):
        table.add_row(_text(name), *(_say(values.get(name)) for values in columns.values()))
    return table


def _scope_table(clip: Mapping[str, Any]) -> Table | None:
    scopes = _mapping(clip.get("scopes"))
    if not scopes:
        return None
    of_update = any("update" in _mapping(values) for values in scopes.values())
    titles = ("norm p50", "p90", "p99", "share of norm²", "clipped steps", "payer")
    table = _table("scope", ("norm of", *titles) if of_update else titles)
    for scope, given in scopes.items():
        values = _mapping(given)
        clipped = (_say(values.get("fraction"), percent=True), _say(values.get("payer")))
        if not of_update:
            table.add_row(_text(scope), *_size(values), *clipped)
            continue
        # What was clipped, and who paid, is said of the update: it stands beside its norms.
        table.add_row(_text(scope), "gradient", *_size(values), _NONE, _NONE)
        table.add_row("", "update", *_size(_mapping(values.get("update"))), *clipped)
    return table


def _size(values: Mapping[str, Any]) -> Iterator[str]:
    """Percentiles of a norm, and its share."""
    norm = _mapping(values.get("norm"))
    yield from (_say(norm.get(quantile)) for quantile in ("p50", "p90", "p99"))
    yield _say(values.get("share"), percent=True)


def _table(first: str, titles: Iterable[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _resume_hint(directory: Path, record: Mapping[str, Any]) -> str:
    status = record["status"]
    if status not in _UNFINISHED:
        return ""
    if Paths(directory).last.is_file():
        return f"continue it:    {program()} resume {shlex.quote(str(directory))}"
    if record["sweep"]:
        return f"continue sweep: {program()} resume {shlex.quote(str(directory.parent))}"
    return "no checkpoints/last.ckpt: there is nothing to resume, make it again"


def _seeds(record: Mapping[str, Any]) -> str:
    seed, data_seed = record["seed"], record["data_seed"]
    if seed is None:
        return ""
    return f"{seed}" if data_seed in (None, seed) else f"{seed} (data {data_seed})"


def _effort(record: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for key, unit in (("steps", "steps"), ("epochs", "epochs"), ("seconds", "s")):
        if record[key] is not None:
            parts.append(f"{_say(record[key])} {unit}")
    if record["steps_per_second"] is not None:
        parts.append(f"{_say(record['steps_per_second'])} steps/s")
    if record["steps_to_target"] is not None:
        parts.append(f"target after {_say(record['steps_to_target'])} steps")
    return ", ".join(parts)


def _when(record: Mapping[str, Any]) -> str:
    times: list[str] = []
    for key in ("started", "ended"):
        try:
            moment = datetime.fromisoformat(record[key]).astimezone()
        except (TypeError, ValueError):
            continue
        times.append(f"{key} {moment:%Y-%m-%d %H:%M:%S}")
    return ", ".join(times)


def _code(directory: Path, record: Mapping[str, Any]) -> str:
    git, versions = _mapping(record["git"]), _mapping(record["versions"])
    parts = [f"{name} {versions[name]}" for name in ("mmrun", "torch") if versions.get(name)]
    if git.get("commit"):
        parts.append(f"commit {str(git['commit'])[:12]}")
    if git.get("dirty"):
        with_diff = Paths(directory).diff.is_file()
        parts.append("with changes" + (" (code.diff)" if with_diff else ""))
    return ", ".join(parts)


def _files(directory: Path) -> list[str]:
    paths = Paths(directory)
    wanted = (
        paths.metrics,
        paths.gradients,
        paths.predictions,
        paths.best,
        paths.last,
        paths.log,
        paths.diff,
    )
    return [str(path.relative_to(directory)) for path in wanted if path.is_file()]


def _bare(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without the split before the slash."""
    return {name.partition("/")[2] or name: value for name, value in values.items()}


def _mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _say(value: Any, *, percent: bool = False) -> str:
    if value is None:
        return _NONE
    if isinstance(value, (int, float)):
        if percent:
            return f"{100 * value:.0f} %"
        return str(value) if isinstance(value, int) else f"{value:.4g}"
    return printable(str(value))
