"""How a law, or the engine around it, is written in one line: its class, and the knobs that are not at their default."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def written(made: object, **knobs: Any) -> str:
    """``Norm(1.0, per='modality')``: as one would make it.

    Args:
        made: has an attribute for each argument of its class that is not among the knobs.
        knobs: arguments that are kept otherwise.
    """
    words: list[str] = []
    for name, each in inspect.signature(type(made)).parameters.items():
        value = knobs.get(name, getattr(made, name, each.default))
        if each.kind is each.VAR_POSITIONAL:
            words += map(repr, value)
        elif each.default is each.empty:
            words += [repr(value)] if value is not each.empty else []
        elif value != each.default and not (each.default is None and _is_empty(value)):
            words.append(f"{name}={value!r}")
    return f"{type(made).__name__}({', '.join(words)})"


def _is_empty(value: object) -> bool:
    return isinstance(value, Mapping) and not value
