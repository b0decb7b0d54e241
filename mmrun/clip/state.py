"""The state of an engine's laws: written down by scope, and taken up by the laws that it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrun.clip.law import Law
from mmrun.errors import UserError

KEYS = {"algorithm", "per", "state"}  # of a law


def state_of(laws: Mapping[str, Law], steps: int) -> dict[str, Any]:
    """Steps, and the name, granularity and state of each law that is bound."""
    found = {
        scope: {"algorithm": law.algorithm, "per": law.per, "state": law.state_dict()}
        for scope, law in laws.items()
        if law.is_bound
    }
    return {"steps": steps, "laws": found}


def take_up(state: Mapping[str, Any], laws: Mapping[str, Law], *, fresh: bool) -> None:
    """Give each law that is bound its own; one that the state does not know has nothing to lose, and starts afresh.

    Args:
        state: from ``state_of``.
        laws: by scope.
        fresh: a law that the state knows another one for starts afresh, too.

    Raises:
        UserError: the state knows another law, without ``fresh``.
    """
    bound = {scope: law for scope, law in laws.items() if law.is_bound}
    check_laws(state, bound, fresh=fresh)
    for scope, law in bound.items():
        known = state["laws"].get(scope)
        if known is not None and _name(known) == _name_of(law):
            law.load_state_dict(known["state"])


def check_laws(state: Mapping[str, Any], laws: Mapping[str, Law], *, fresh: bool) -> None:
    """Raise UserError where the state knows another law, without ``fresh``."""
    for scope, law in laws.items():
        known = state["laws"].get(scope)
        if not fresh and known is not None and _name(known) != _name_of(law):
            raise UserError(
                "the state is of another clip law" + (f" for {scope}" if scope else ""),
                given=f"{_name(known)}, and this is {_name_of(law)}",
                remedy="Use that law; or load_state_dict(..., fresh=True) to start this one afresh.",
            )


def _name(known: Mapping[str, Any]) -> str:
    return f"{known['algorithm']} per {known['per']}"


def _name_of(law: Law) -> str:
    return f"{law.algorithm} per {law.per}"


def check_state(state: Any) -> None:
    """Raise UserError for what is no state of an engine."""
    good = (
        isinstance(state, Mapping)
        and isinstance(state.get("steps"), int)
        and isinstance(laws := state.get("laws"), Mapping)
        and all(isinstance(each, Mapping) and each.keys() >= KEYS for each in laws.values())
    )
    if not good:
        keys = isinstance(state, Mapping)
        raise UserError(
            "this is no state of a Clipper",
            given=", ".join(map(str, state)) or "{}" if keys else type(state).__name__,
            remedy="Give what its state_dict() returned; a law by itself has a state of its own.",
        )


def has_learnt(state: Mapping[str, Any]) -> bool:
    """Whether a law has anything in it."""
    return any(each["state"] for each in state["laws"].values())
