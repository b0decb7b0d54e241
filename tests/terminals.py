"""A terminal for tests: a command in a pty, and the screen that a person would see of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.cells import cell_len

from tests.running import environment_with

_CONTROL = re.compile(r"\x1b\[(\?)?([\d;]*)([A-Za-z])")
_PART = re.compile(r"\x1b\[\??[\d;]*$|\x1b$")


class Screen:
    """What a terminal shows: lines, the cursor, wrapping at the right edge and when it gets narrower. Colors are counted.

    Args:
        columns: its width.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]  # a cell each; the second of a wide letter is empty
        self.row = self.column = 0
        self.cursor = True
        self.colors = 0
        self._rest = ""

    @property
    def lines(self) -> list[str]:
        """All lines, those that have scrolled away too, without blanks at the ends."""
        found = ["".join(row).rstrip() for row in self.rows]
        while found and not found[-1]:
            found.pop()
        return found

    def feed(self, text: str) -> None:
        """Take in what was written."""
        text = self._rest + text
        part = _PART.search(text)
        self._rest = part[0] if part else ""
        text = text[: len(text) - len(self._rest)]
        at = 0
        for found in _CONTROL.finditer(text):
            self._write(text[at : found.start()])
            self._obey(found[2], found[3])
            at = found.end()
        self._write(text[at:])

    def resize(self, columns: int) -> None:
        """As most terminals do it: what is longer than the new width goes on in the next line."""
        rows: list[list[str]] = []
        place = 0
        for number, row in enumerate(self.rows):
            trimmed = list("".join(row).rstrip()) if row else []
            parts = [trimmed[k : k + columns] for k in range(0, len(trimmed), columns)] or [[]]
            if number == self.row:
                self.column = min(self.column, len(trimmed))
                place = len(rows) + self.column // columns
            rows += parts
        self.rows, self.columns = rows, columns
        self.row, self.column = place, self.column % columns

    def _write(self, text: str) -> None:
        for letter in text:
            if letter == "\r":
                self.column = 0
            elif letter == "\n":
                self._down()
            elif letter.isprintable():
                cells = cell_len(letter)
                if self.column + cells > self.columns:
                    self._down()
                    self.column = 0
                row = self.rows[self.row]
                row += [" "] * (self.column + cells - len(row))
                row[self.column : self.column + cells] = [letter, ""][:cells]
                self.column += cells

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

    def _obey(self, numbers: str, letter: str) -> None:
        if letter == "A":
            self.row = max(self.row - int(numbers or 1), 0)
        elif letter == "B":
            self.row = min(self.row + int(numbers or 1), len(self.rows) - 1)
        elif letter == "K" and numbers == "2":
            self.rows[self.row] = []
        elif letter in "hl" and numbers == "25":
            self.cursor = letter == "h"
        elif letter == "m":
            self.colors += any(30 <= int(each or 0) <= 37 for each in numbers.split(";"))
        else:
            raise AssertionError(f"a control sequence that this terminal does not know: {letter}")


class Terminal:
    """A Python program in a terminal of its own, which is the one that its session belongs to.

    Args:
        words: the program: what follows ``python``.
        columns: the terminal's width.
        lines: its height.
        environment: what else the program's environment has.
    """

    def __init__(
        self, words: Sequence[str], *, columns: int = 80, lines: int = 24, **environment: str
    ) -> None:
        self.screen = Screen(columns)
        self.raw = b""
        self.height = lines
        self.master, slave = os.openpty()
        self._resize(columns)
        env = environment_with({"TERM": "xterm-256color"} | environment)
        for name in ("COLUMNS", "LINES", *(() if "NO_COLOR" in environment else ("NO_COLOR",))):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CONTROLLED, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.close()

    def until(self, seen: Callable[[Screen], bool], seconds: float = 60) -> Screen:
        """Read until the screen shows it; the screen."""
        end = time.monotonic() + seconds
        while not seen(self.screen):
            assert time.monotonic() < end, "\n".join(["not seen on:", *self.screen.lines])
            assert self._read(), "\n".join(["it ended with:", *self.screen.lines])
        return self.screen

    def wait(self, seconds: float = 60) -> int:
        """Read to its end; the exit code."""
        end = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < end, "\n".join(["no end:", *self.screen.lines])
        return self.process.wait(10)

    def resize(self, columns: int) -> None:
        """Make the terminal wider or narrower; what was written before is read first."""
        while self._read(0.0) and select.select([self.master], [], [], 0.0)[0]:
            pass
        self._resize(columns)
        self.screen.resize(columns)

    def close(self) -> None:
        """Close the window."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def _resize(self, columns: int) -> None:
        size = struct.pack("HHHH", self.height, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def _read(self, seconds: float = 0.2) -> bool:
        """Some of what was written; False where nothing more will come."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        data = b""
        with contextlib.suppress(OSError):  # EIO: everybody has closed it
            data = os.read(self.master, 65536)
        self.raw += data
        self.screen.feed(data.decode(errors="replace"))
        return bool(data)


# The terminal becomes the controlling one, so that closing it hangs up.
_CONTROLLED = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
