"""What a person sees of a sweep while it lasts: it fits the terminal, says what is so, costs little, and leaves no trace."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from mmrun.launch import frame, report
from mmrun.launch.running import Running
from mmrun.launch.view import LiveView, View, open_view
from tests.launch.a_sweep import HARD, ended, planned, running
from tests.running import cpu_seconds, environment_with
from tests.terminals import Screen, Terminal

SWEEP = str(Path(__file__).with_name("a_sweep.py"))
RETRY = "clip=2,seed=0  failed: ValueError: no  try 2 of 3 follows"
PLAIN = [
    "[1/8]  clip=0.5,seed=0  finished  val/accuracy 0.875  12.0 s  (N s left)",
    RETRY,
    "the end",
]


def timeless(text: str) -> str:
    """Without the seconds that are left: they depend on how busy the machine is."""
    return re.sub(r"\(\d+ s left\)", "(N s left)", text)


def told(progress: report.Progress, points: list[Running], **size: Any) -> list[str]:
    return [line.plain for line in frame.lines(progress, points, **size)]


def some(total: int = 100) -> report.Progress:
    progress = report.Progress(total)
    progress.ended(planned(f"{HARD}99"), ended(0.25, name=f"{HARD}99"), 12.0)
    progress.parallel = 64
    return progress


# What is drawn


@pytest.mark.parametrize("width", [1, 20, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [1, 5, 24, 60])
def test_the_view_fits_its_terminal(width: int, height: int):
    points = [running(f"{HARD}{k}", 10) for k in range(64)]
    assert len(points[0].planned.point.name.encode()) > 110
    for unicode in (True, False):
        size = {"width": width, "height": height, "unicode": unicode}
        lines = told(some(), points, **size)
        assert max(map(cell_len, lines)) < max(width, 2)
        assert len(lines) <= max(height - 1, 2)
        shown = sum("seed=" in line for line in lines[2:])
        if height == 24 and width >= 60:
            assert shown == 24 - 2 - 2 - 1
            assert lines[-1].strip() == f"and {64 - shown} more"


def test_a_line_says_how_far_a_point_is_and_leaves_out_what_has_no_room():
    points = [running("clip=none,optimizer.lr=0.01,seed=0", 3), running("clip=0.5,seed=1")]
    rows = {width: told(report.Progress(4), points, width=width, height=24) for width in (60, 120)}
    wide, narrow = rows[120][1].split(), rows[60][1].split()
    words = ["epoch", "3/20", "step", "51", "accuracy", "0.900", "val", "loss", "0.500"]
    assert wide[:-1] == ["clip=none,optimizer.lr=0.01,seed=0", *words]
    assert re.fullmatch(r"clip=.*\.\.\..*seed=0", narrow[0])
    assert narrow[1:-1] == ["epoch", "3/20", "accuracy", "0.900"]
    assert narrow[-1] in ("0:00", "0:01", "0:02")
    assert rows[120][2].split()[:-1] == ["clip=0.5,seed=1", "training"]


def test_names_are_shown_as_they_are():
    (row,) = told(report.Progress(4), [running(f"{HARD}7", 3)], width=250, height=24)[1:]
    assert f"{HARD}7  epoch" in row
    (row,) = told(report.Progress(4), [running("a\x1b[31m\nb", 3)], width=250, height=24)[1:]
    assert row.split()[0] == "a\\x1b[31m"  # what a terminal would act upon is spelled out


def test_a_point_that_waits_for_its_turn_comes_last():
    waiting = Running(planned("first"), None, begun=False)
    head, *rows = told(report.Progress(4), [waiting, running("second")], width=99, height=24)
    assert [row.split()[:2] for row in rows] == [["second", "training"], ["first", "queued"]]
    assert "1 running  1 queued" in head


def test_the_bar_counts_points_by_how_they_ended():
    progress = some(10)
    for k, status in enumerate(["diverged", "failed", "killed"]):
        progress.ended(planned(f"n{k}"), ended(0.1, status), 12.0)
    progress.retried = 3
    head, best, *_ = frame.lines(progress, [running("seed=0")], width=120, height=24)
    assert re.search(r"  2/10 done  1 running  2 failed  3 retried  1\d s left$", head.plain)
    assert (head.plain.count("━"), head.plain.count("─")) == (16, 24)
    assert best.plain.startswith("best  val/loss 0.250  note=")  # not of the one that diverged
    assert "left" not in told(report.Progress(3), [], width=99, height=9)[0]


@pytest.mark.parametrize(
    ("cells", "cut"), [(40, "clip=0.5,seed=0"), (12, "cli...seed=0"), (2, "..")]
)
def test_a_name_is_cut_in_its_middle(cells: int, cut: str):
    assert frame.fitted("clip=0.5,seed=0", cells) == cut
    for k in range(12):
        assert cell_len(frame.fitted("日本語テキスト,seed=0", k)) <= k


# In a terminal


def has(*words: str) -> Any:
    return lambda screen: all(any(word in line for line in screen.lines) for word in words)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_what_ended_scrolls_above_what_runs(columns: int):
    with Terminal([SWEEP, "waits"], columns=columns) as terminal:
        screen = terminal.until(has("1/8 done  2 running", "epoch  3/20", "best  "))
        assert not screen.cursor
        lines = screen.lines
        first = next(k for k, line in enumerate(lines) if "1/8 done" in line)
        above, (bar, best, *rows) = "".join(lines[:first]), lines[first:]
        assert timeless(above).replace(" ", "") == "".join(PLAIN[:2]).replace(" ", "")
        assert "1 retried" in bar
        assert best == "best  val/loss 0.250  clip=0.5,seed=0"
        assert [row.split()[0] for row in rows] == ["clip=none,seed=0", "clip=0.5,seed=1"]
        assert screen.colors


@pytest.mark.parametrize(
    ("scene", "sent", "code", "last"),
    [
        ("ends", None, 0, "the end"),
        ("raises", None, 1, "mmrun: RuntimeError: in the midst of it"),
        ("waits", signal.SIGINT, 130, "mmrun: interrupted"),
        ("waits", signal.SIGTERM, 143, "mmrun: terminated"),
    ],
)
def test_the_terminal_is_left_as_it_was(
    scene: str, sent: signal.Signals | None, code: int, last: str
):
    with Terminal([SWEEP, scene]) as terminal:
        if sent is not None:
            terminal.until(has("best  "))
            terminal.process.send_signal(sent)
        assert terminal.wait() == code
        lines = list(map(timeless, terminal.screen.lines))
        assert terminal.screen.cursor
        assert lines[:3] == [*PLAIN[:2], last]
        assert len(lines) < 5


def test_what_others_print_scrolls_too():
    with Terminal([SWEEP, "prints"]) as terminal:
        assert terminal.wait() == 0
        said = ["a word of somebody else's", "and a warning"]
        lines = list(map(timeless, terminal.screen.lines))
        assert lines == [*PLAIN[:2], *said, PLAIN[2]]


def test_it_fits_when_the_terminal_gets_narrower_and_wider():
    with Terminal([SWEEP, "many"], columns=120, lines=20) as terminal:
        terminal.until(has("more"))
        for columns in (70, 50, 130):
            terminal.resize(columns)
            terminal.until(drawn_once)


def drawn_once(screen: Screen) -> bool:
    """Nothing is left over of what was drawn at another width, and it is all there."""
    lines = screen.lines
    counts = [sum(word in line for line in lines) for word in ("1/8 done", "best  ")]
    rows = 20 - 2 - 2 - 1
    return (
        counts == [1, 1]
        and lines[-1].strip() == f"and {64 - rows} more"
        and max(map(cell_len, lines[-rows - 3 :])) == screen.columns - 1
        and all("0:" in line for line in lines[-rows - 1 : -1])
    )


def test_without_colors():
    with Terminal([SWEEP, "ends"], NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
        assert terminal.screen.colors == 0
        assert {"━", "─"} <= set(terminal.raw.decode())


def test_a_dumb_terminal_gets_plain_lines():
    with Terminal([SWEEP, "ends"], TERM="dumb") as terminal:
        assert terminal.wait() == 0
        assert list(map(timeless, terminal.screen.lines)) == PLAIN
        assert b"\x1b" not in terminal.raw


def test_a_closed_terminal_ends_nothing():
    with Terminal([SWEEP, "unseen"]) as terminal:
        terminal.until(has("best  "))
        terminal.close()
        Path("gone").touch()
        assert terminal.process.wait(60) == 0
    assert Path("end").exists()


# Elsewhere


def piped() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SWEEP, "unseen"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with({}),
    )


def test_a_pipe_gets_one_line_per_point_at_once_and_nothing_else():
    with piped() as process:
        assert process.stdout is not None
        assert [timeless(process.stdout.readline()).strip() for _ in range(2)] == PLAIN[:2]
        Path("gone").touch()
        rest, errors = process.communicate(timeout=60)
    again = "[2/8]  clip=1,seed=0  finished  val/accuracy 0.875  12.0 s  (N s left)"
    assert timeless(rest).splitlines() == ["unheard", again, "the end"]
    assert not errors


def test_a_broken_pipe_ends_nothing():
    with piped() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        Path("gone").touch()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
    assert Path("end").exists()


def test_nothing_is_drawn_where_something_else_draws(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert type(open_view(1, print, alone=True)) is View
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert type(open_view(1, print, alone=True)) is LiveView
    assert type(open_view(1, print, alone=False)) is View
    monkeypatch.setenv("TERM", "dumb")
    assert type(open_view(1, print, alone=True)) is View


def test_a_terminal_that_goes_in_the_midst_of_drawing_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    def gone(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    silenced: list[bool] = []
    monkeypatch.setattr("mmrun.launch.view.unheard", lambda: silenced.append(True))
    monkeypatch.setattr("rich.live.Live.update", gone)
    with LiveView(8, print) as view:
        view.tick([running("seed=0", 3)])
    assert silenced == [True]


# What it costs


def test_it_draws_a_few_times_a_second_and_only_what_has_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    now = [1000.0]
    monkeypatch.setattr("mmrun.launch.view.time.monotonic", lambda: now[0])
    points = [running("seed=0", 3), running("seed=1", 4)]
    drawn: list[str] = []
    with LiveView(8, print) as view:
        for _ in range(100):
            now[0] += 0.04
            view.tick(points)
            drawn += filter(None, [capsys.readouterr().out])
        assert len(drawn) == 4  # its clocks say whole seconds
        drawn.clear()
        for _ in range(100):
            now[0] += 0.04
            view.progress.retried += 1
            view.tick(points)
            drawn += filter(None, [capsys.readouterr().out])
        assert len(drawn) in range(12, 17)  # in 4 seconds


def test_drawing_is_cheap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    points = [running("clip=0.5,optimizer.lr=0.1,seed=0", 3), running("seed=1", 4)]
    monkeypatch.setattr("mmrun.launch.view.REDRAW_S", 0.0)
    with LiveView(8, print) as view:

        def draw() -> None:
            for _ in range(20):
                view.progress.retried += 1
                view.tick(points)

        assert cpu_seconds(draw) / 20 < 0.02  # four of them a second; 0.002 where it was measured
    capsys.readouterr()


def test_a_screen_is_one():
    """The terminal that these tests look at does what it should."""
    screen = Screen(10)
    screen.feed("one\r\ntwo\x1b[31")
    screen.feed("m!\x1b[0m\r\n\x1b[?25l\x1b[2A\r\x1b[2K日本")
    assert (screen.lines, screen.cursor, screen.colors) == (["日本", "two!"], False, 1)
    screen.feed("\r\n\nabcdefghijkl")
    assert screen.lines == ["日本", "two!", "abcdefghij", "kl"]
    screen.resize(5)
    assert screen.lines == ["日本", "two!", "abcde", "fghij", "kl"]


def test_a_point_that_has_ended_runs_no_more():
    first, second = running("seed=0", 3), running("seed=1", 4)
    lines: list[str] = []
    view = View(2, lines.append)
    view.tick([first, second])
    view.ended(first.planned, ended(0.25), 4.0)
    assert view.running == [second]
    assert len(lines) == 1
