"""The constructor is the schema: are these values what a callable's annotations ask for?"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from mmrun.errors import UserError, nearest


def check(target: Callable[..., Any], values: Mapping[str, Any], where: str) -> None:
    """Raise UserError where a keyword is unknown to ``target`` or its value has the wrong type.

    Args:
        target: class or function that will be called with ``values`` as keywords.
        values: {keyword: value} from a config.
        where: the config group, for messages (``clip`` gives ``clip.threshold``).
    """
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    for name, value in values.items():
        if name not in parameters:
            if open_ended:
                continue
            raise UserError(
                f"{where} takes no {name}",
                given=f"{where}.{name}",
                remedy=nearest(name, parameters),
            )
        annotation = hints.get(name, Any)
        if not fits(value, annotation):
            word = get_origin(annotation) is Literal and isinstance(value, str)
            raise UserError(
                f"{where}.{name} {'cannot be this' if word else 'has the wrong type'}",
                given=repr(value),
                remedy=f"It takes {describe(annotation)}.",
            )


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations that exist for type checkers only
        return {}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a config value (plain scalars, lists, dicts) is of the annotated type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    container = origin if origin is not None else annotation
    if not isinstance(container, type):
        return True
    if _is_plain(container) and issubclass(container, Mapping):
        inner = arguments[1] if len(arguments) == 2 else Any
        return isinstance(value, dict) and all(fits(each, inner) for each in value.values())
    if _is_plain(container) and issubclass(container, Collection):
        inner = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(fits(each, inner) for each in value)
    return isinstance(value, container)


def _is_plain(container: type) -> bool:
    """Whether a config can hold one; not so for a library's own collection, such as torch.Tensor."""
    return container.__module__ in ("builtins", "collections.abc", "typing")


def describe(annotation: Any) -> str:
    """An annotation in words: ``float`` -> a number."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    names = {float: "a number", int: "an integer", bool: "true or false", str: "a word"}
    if annotation in names:
        return names[annotation]
    if annotation is None or annotation is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        words = [describe(each) for each in arguments]
        return " or ".join(dict.fromkeys(word for word in words if word))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    container = origin if origin is not None else annotation
    if not isinstance(container, type) or not _is_plain(container):
        return ""
    if issubclass(container, Mapping):
        return "a mapping"
    if issubclass(container, Collection):
        inner = describe(arguments[0]) if arguments else ""
        return f"a list of {inner.removeprefix('a ').removeprefix('an ')}s" if inner else "a list"
    return ""
