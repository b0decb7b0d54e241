"""How a command ends: its exit code, and one clear message instead of a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from mmrun.errors import UserError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit code: 2 for a mistake of the user's, 1 for a failure, 130 and 143 for signals."""
    try:
        return command()
    except UserError as error:
        _tell(f"mmrun: {error}")
        return WRONG_INPUT
    except KeyboardInterrupt:
        _tell("mmrun: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (``mmrun ... | head``); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        _tell(f"mmrun: {type(error).__name__}: {first}")
        _hint_at_traceback()
        return FAILED
    except BaseException as error:
        signum = getattr(error, "signum", None)
        if signum is None:
            raise
        _tell(f"mmrun: {'interrupted' if signum == 2 else 'terminated'}")
        return 128 + signum


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    if os.environ.get("MMRUN_TRACEBACK") == "1":
        sys.stderr.write(traceback.format_exc())


def _hint_at_traceback() -> None:
    if os.environ.get("MMRUN_TRACEBACK") != "1":
        sys.stderr.write("The traceback is in the run's train.log; MMRUN_TRACEBACK=1 prints it.\n")
