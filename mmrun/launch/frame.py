"""The lines of a sweep's live view, as many and as long as a terminal has room for: a bar, the best point, those that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mmrun.errors import printable
from mmrun.launch.report import Progress, scores
from mmrun.launch.running import Running
from mmrun.runs.standing import digits, duration

_GAP = "  "
_DOTS = "..."
_FREE = 1  # columns at the right: many a terminal wraps a line that fills it
_BAR = (8, 40)  # least and most columns
_SPARE = 2  # lines of a terminal that stay free, for what scrolls and the cursor
_MARKS = {
    True: ("━", "─"),
    False: ("#", "-"),
}  # told apart without colours; where there is unicode, and where not


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of a running point; the name first, the rest in the order of its fields."""

    name: str
    epoch: str = ""
    step: str = ""
    metric: str = ""
    loss: str = ""
    time: str = ""


# What is left out first where the lines are too long for their terminal.
_LEFT_OUT = ("step", "loss", "epoch", "metric")


def lines(
    progress: Progress,
    running: Sequence[Running],
    *,
    width: int,
    height: int,
    unicode: bool = True,
) -> list[Text]:
    """All lines of the view, none longer than the terminal is wide.

    Args:
        progress: how far the sweep is.
        running: what is submitted.
        width: columns of the terminal.
        height: its lines.
        unicode: whether it shows more than ASCII.
    """
    width = max(width - _FREE, 1)
    head = [_bar(progress, running, width, _MARKS[unicode])]
    best = progress.best
    if best is not None:
        head.append(_best(best.score, best.name, width))
    room = max(height - _SPARE - len(head), 0)
    # Those that wait for their turn come last: of them one needs to see the least.
    ordered = sorted(running, key=lambda each: each.began is None)
    if len(ordered) > room:
        ordered = ordered[: max(room - 1, 0)]
    below = _table([row(each) for each in ordered], width)
    more = len(running) - len(ordered)
    if more and room:
        below.append(Text(f"{_GAP}and {more} more", style="dim"))
    for line in (*head, *below):
        line.no_wrap = True
        line.truncate(width)
    return [*head, *below]


def row(running: Running) -> Row:
    """What a point's record says of it, as of its last validation."""
    name = printable(running.planned.point.name)
    seconds = running.seconds()
    if seconds is None:
        return Row(name=name, epoch="queued")
    time = clock(seconds)
    record = running.record
    if record.get("status") != "running":
        return Row(name=name, epoch="starting", time=time)
    trainer = running.planned.point.config.get("trainer")
    limits = cast("Mapping[str, Any]", trainer if isinstance(trainer, Mapping) else {})
    metric, loss = scores(record)
    return Row(
        name=name,
        epoch=_of("epoch", record["epochs"], limits.get("max_epochs")) or "training",
        step=_of("step", record["steps"], limits.get("max_steps")),
        metric=f"{metric[0].removeprefix('val/')} {digits(metric[1])}" if metric else "",
        loss=f"val loss {digits(loss)}" if loss is not None else "",
        time=time,
    )


def clock(seconds: float) -> str:
    """A time that runs.

    >>> clock(7.9), clock(83), clock(3723)
    ('0:07', '1:23', '1:02:03')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitted(text: str, cells: int) -> str:
    """The text; both ends of it, with dots between, where it takes more columns than these.

    >>> fitted("clip=0.5,optimizer.lr=0.1,seed=0", 16)
    'clip=...0,seed=0'
    """
    if cell_len(text) <= cells:
        return text
    if cells <= len(_DOTS):
        return _DOTS[:cells]
    kept = cells - len(_DOTS)
    end = kept * 2 // 3  # the last settings vary fastest: points that run at once differ there
    tail = len(text)
    while cell_len(text[tail - 1 :]) <= end:
        tail -= 1
    return set_cell_size(text, kept - end).rstrip() + _DOTS + text[tail:]


def _of(word: str, value: Any, most: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    if isinstance(most, int) and most > 0:
        return f"{word} {int(value):{len(str(most))}}/{most}"
    return f"{word} {int(value)}"


def _bar(
    progress: Progress, running: Sequence[Running], width: int, marks: tuple[str, str]
) -> Text:
    begun = sum(each.began is not None for each in running)
    left = progress.left([each.seconds() for each in running])
    words = [
        (f"{progress.done}/{progress.total} done", ""),
        (f"{begun} running", "cyan"),
        (f"{len(running) - begun} queued" if len(running) > begun else "", "dim"),
        (f"{progress.failed} failed" if progress.failed else "", "red"),
        (f"{progress.retried} retried" if progress.retried else "", "yellow"),
        (f"{duration(left)} left" if left is not None else "", ""),
    ]
    text = Text(_GAP).join(Text(word, style) for word, style in words if word)
    room = min(width - text.cell_len - len(_GAP), _BAR[1])
    if room < _BAR[0]:
        return text
    total = max(progress.total, 1)
    done = room * progress.done // total
    ended = room * (progress.done + progress.failed) // total
    full, empty = marks
    return Text.assemble(
        (full * done, "green"),
        (full * (ended - done), "red"),
        (empty * (room - ended), "dim"),
        _GAP,
        text,
    )


def _best(score: str, name: str, width: int) -> Text:
    text = Text.assemble(("best", "dim"), _GAP, (printable(score), "bold"), _GAP)
    return text.append(fitted(printable(name), max(width - text.cell_len, 0)))


def _table(rows: Sequence[Row], width: int) -> list[Text]:
    """Rows in columns; of long names the ends, and no more columns than leave room for a third of them."""
    columns = [field.name for field in fields(Row)][1:]
    widths = {
        column: max((cell_len(getattr(each, column)) for each in rows), default=0)
        for column in columns
    }
    names = max((cell_len(each.name) for each in rows), default=0)
    room = 0
    for column in ("", *_LEFT_OUT):
        widths.pop(column, None)
        taken = sum(len(_GAP) + cells for cells in widths.values() if cells)
        room = width - len(_GAP) - taken
        if room >= min(names, width // 3):
            break
    names = min(names, max(room, 1))
    found: list[Text] = []
    for each in rows:
        name = fitted(each.name, names)
        text = Text(_GAP + name + " " * (names - cell_len(name)))
        for column, cells in widths.items():
            if cells:
                cell = str(getattr(each, column))
                blank = " " * (cells - cell_len(cell))
                text.append(_GAP)
                text.append(blank + cell if column == "time" else cell + blank)
        if each.epoch == "queued":
            text.stylize("dim")
        found.append(text)
    return found
