"""train.log: what is said, warned and logged while a run lasts; a person sees only what is said."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARIES = ("pytorch_lightning", "lightning_fabric")


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Loggers and warnings write to ``path``, and to nothing else, while this lasts."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    own = logging.getLogger("mmrun")
    loggers = [own, *map(logging.getLogger, LIBRARIES)]
    kept = [(each, each.handlers[:], each.propagate, each.level) for each in loggers]
    for each in loggers:
        each.handlers, each.propagate = [handler], False
        each.setLevel(logging.WARNING)  # what libraries advertise is no part of a run
    own.setLevel(logging.INFO)

    def warned(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if issubclass(category, FutureWarning):
            return  # what a library says to another about its next version
        own.warning("%s: %s (%s:%d)", category.__name__, message, filename, lineno)

    show = warnings.showwarning
    warnings.showwarning = warned
    try:
        yield
    finally:
        warnings.showwarning = show
        for each, handlers, propagate, level in kept:
            each.handlers, each.propagate = handlers, propagate
            each.setLevel(level)
        handler.close()
