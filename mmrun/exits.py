"""How a command ends: its exit code, and one clear message instead of a traceback."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mmrun.errors import UserError, described, printable
from mmrun.signals import deaf

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def program() -> str:
    """What to type for mmrun here: scripts/mmrun says so where mmrun itself is not on the path."""
    return os.environ.get("MMRUN_COMMAND") or "mmrun"


def shown(path: Path) -> str:
    """A path as one would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def unheard() -> None:
    """What is printed from now on goes nowhere: its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """Print a line of long work at once. Its reader may go (``mmrun train -m ... | head``), or its terminal: the work goes on, unheard."""
    try:
        print(line, flush=True)  # noqa: T201 (what it is for)
    except OSError:
        unheard()


def continuing(directory: Path) -> str:
    """The sentence that says how an interrupted run goes on."""
    return f"continue it: {program()} resume {shlex.quote(shown(directory))}"


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit code: 2 for a mistake of the user's, 1 for a failure, 130 and 143 for signals."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for good)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without some letter is no failure
    try:
        return command()
    except SystemExit as error:  # of argparse, which has said why
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except UserError as error:
        _tell(f"mmrun: {error}")
        return WRONG_INPUT
    except KeyboardInterrupt:
        _tell("mmrun: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (``mmrun ... | head``); nothing is left to say to it.
        unheard()
        return FAILED
    except ModuleNotFoundError as error:
        _tell(f"mmrun: {error}")
        _hint_at_traceback(error)
        sys.stderr.write(f"{program()} doctor says what is installed.\n")
        return FAILED
    except Exception as error:
        _tell(f"mmrun: {described(error)}".split("\n", 1)[0])
        _hint_at_traceback(error)
        return FAILED
    except BaseException as error:
        signum = getattr(error, "signum", None)
        if signum is None:
            raise
        with deaf():
            _tell(f"mmrun: {'interrupted' if signum == 2 else 'terminated'}")
            _say_notes(error)
        return 128 + signum


def _tell(line: str) -> None:
    try:
        sys.stderr.write(printable(line) + "\n")
    except OSError:  # its terminal is gone: nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    if os.environ.get("MMRUN_TRACEBACK") == "1":
        sys.stderr.write(traceback.format_exc())


def _hint_at_traceback(error: Exception) -> None:
    _say_notes(error)
    if os.environ.get("MMRUN_TRACEBACK") != "1":
        sys.stderr.write("MMRUN_TRACEBACK=1 prints the traceback.\n")


def _say_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        sys.stderr.write(f"{printable(str(note))}\n")
