"""Which of the runs does the user mean? ``--where KEY=VALUE``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from mmrun.compare.collect import Row, known_keys, said
from mmrun.errors import UserError, nearest

FACTS = ("status", "stability", "name", "id", "sweep", "seed", "data_seed")
_CONDITION = re.compile(r"([^=<>!]+?)\s*(<=|>=|!=|==|=|<|>)\s*(.*)", re.DOTALL)
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def where(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """The runs that meet every condition.

    A condition is KEY=VALUE (a comma: any of these), KEY!=VALUE (none of these), or KEY<NUMBER, <=,
    > or >=, in which what is no number meets none. Numbers compare as such: 0.10 is 0.1.

    Args:
        rows: the runs.
        conditions: each a condition on a setting, or on status, stability, name, id, sweep.

    Raises:
        UserError: no condition, a key that no run has, or no run that meets them.
    """
    kept = list(rows)
    for condition in conditions:
        matched = _CONDITION.fullmatch(condition.strip())
        if matched is None:
            raise UserError(
                "this is no condition",
                given=condition,
                remedy="Write KEY=VALUE, as in clip=none,0.5 or 'optimizer.lr>0.1'.",
            )
        key, sign, wanted = matched.groups()
        known = {*known_keys(rows), *FACTS}
        if key not in known:
            raise UserError("no run has this key", given=condition, remedy=nearest(key, known))
        met = [row for row in kept if _meets(_fact(row, key), sign, wanted, condition)]
        if not met:
            values = sorted({said(_fact(row, key)) for row in kept})
            raise UserError(
                "no run is left",
                given=condition,
                remedy=f"{key} is {', '.join(values[:12])}{', ...' if len(values) > 12 else ''}.",
            )
        kept = met
    return kept


def number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


def _fact(row: Row, key: str) -> Any:
    return row.record[key] if key in FACTS else row.value(key)


def _meets(value: Any, sign: str, wanted: str, condition: str) -> bool:
    text = said(value)
    if sign in _ORDER:
        bound = number(wanted)
        if bound is None:
            raise UserError(f"{sign} wants a number", given=condition)
        have = None if isinstance(value, bool) else number(text)
        return have is not None and _ORDER[sign](have, bound)
    # A list is one value although it has commas.
    found = any(_equal(text, each.strip()) for each in (wanted, *wanted.split(",")))
    return found != (sign == "!=")


def _equal(have: str, wanted: str) -> bool:
    if have.replace(" ", "") == wanted.replace(" ", ""):
        return True
    a, b = number(have), number(wanted)
    return a is not None and a == b
