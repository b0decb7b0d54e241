"""The terminal that a verb prints to, if there is one."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TypeVar

_Otherwise = TypeVar("_Otherwise", int, None)


def width(otherwise: _Otherwise) -> int | _Otherwise:
    """Columns of the terminal; ``otherwise`` where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else otherwise


def colored() -> bool:
    """Whether colors are welcome there."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
